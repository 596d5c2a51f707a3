"""Decoupled knowledge distillation (Zhao et al., 2022): the target class and the other classes have separate weights.

Formula, after their Eq. 7: w T^2 (alpha TCKD + beta NCKD), mean over the batch. For an image of class y and
p = softmax(logits / T), TCKD = KL(b_t || b_s) compares the binary distributions b = (p_y, 1 - p_y) of teacher and
student, and NCKD = KL(q_t || q_s) their distributions q = softmax(logits / T) over the classes other than y. The
usual KL(p_t || p_s) is TCKD + (1 - p_t,y) NCKD (Eq. 6): it nearly drops NCKD where the teacher is certain. The warm-up
is w = min(epoch / (warmup * epochs), 1), where epochs count from 1.

Settings: alpha (default 1.0); beta (8.0); temperature (4.0), T; warmup (20 / 240), the fraction of the run in which w
rises to 1. They are those of the authors' code, and so is the weight of 1 beside a cross-entropy of weight 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kdflow.methods.losses import LossInputs, kl_per_sample, require_fraction, require_not_negative, require_positive
from kdflow.models.features import Outputs

NEEDS_FEATURES = False


class DecoupledDistillation(nn.Module):
    """Weighted sum of the divergences for the target class and for the other classes."""

    def __init__(self, alpha: float, beta: float, temperature: float, warmup: float) -> None:
        super().__init__()
        self.alpha, self.beta, self.temperature, self.warmup = alpha, beta, temperature, warmup

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        models = (inputs.teacher.logits.detach(), inputs.student.logits)
        (b_t, q_t), (b_s, q_s) = (split_target(logits / self.temperature, inputs.labels) for logits in models)
        per_sample = self.alpha * kl_per_sample(b_t, b_s, 1.0) + self.beta * kl_per_sample(q_t, q_s, 1.0)
        warmup = min(inputs.run_fraction / self.warmup, 1.0) if self.warmup > 0 else 1.0
        return warmup * self.temperature**2 * per_sample.mean()


def build(
    student: Outputs,  # noqa: ARG001
    teacher: Outputs,  # noqa: ARG001
    labels: Int64[Tensor, " n"],  # noqa: ARG001
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    warmup: float = 20 / 240,
) -> DecoupledDistillation:
    """Return a loss without parameters.

    Raises:
        ValueError: an option is out of range.
    """
    require_not_negative(alpha=alpha, beta=beta)
    if alpha == beta == 0:
        raise ValueError("alpha and beta are both 0, so that the loss is 0; set one of them in loss.options")
    require_positive(temperature=temperature)
    require_fraction(warmup=warmup)
    return DecoupledDistillation(alpha, beta, temperature, warmup)


def split_target(
    logits: Float[Tensor, "b classes"], labels: Int64[Tensor, " b"]
) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b classes-1"]]:
    """Return logits of the target class against all others, and logits of the other classes."""
    other = torch.arange(logits.shape[1] - 1, device=logits.device)
    rest = logits.gather(1, other + (other >= labels[:, None]))  # a mask would make the host wait for the device
    return torch.cat([logits.gather(1, labels[:, None]), rest.logsumexp(1, keepdim=True)], dim=1), rest
