"""DIST (Huang et al., 2022): the student's probabilities correlate with the teacher's, per image and per class.

Formula: T^2 (beta mean_i (1 - r(p_s,i, p_t,i)) + gamma mean_c (1 - r(p_s,c, p_t,c))), where
p = softmax(logits / T) of a batch has a row i for each image (the inter-class relation) and a column c for each class
(the intra-class relation). r(a, b) = <a', b'> / (||a'|| ||b'|| + eps) is Pearson's correlation of the centred vectors
a' and b', eps = 1e-8: 0 where one of them is constant, as the column of a single image is. The factor T^2 is that of
the authors' code.

Settings: beta (default 1.0), gamma (1.0), temperature (4.0), T. The usual weight is 2 beside a cross-entropy of
weight 1, which is the paper's beta = gamma = 2. It has T = 4 for CIFAR-100 and T = 1 for ImageNet.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kdflow.methods.losses import LossInputs, require_not_negative, require_positive
from kdflow.models.features import Outputs

NEEDS_FEATURES = False
NEEDS_BATCH = True
EPS = 1e-8


class CorrelationDistillation(nn.Module):
    """Weighted sum of the missing correlations of the rows and of the columns of a batch's probabilities."""

    def __init__(self, beta: float, gamma: float, temperature: float) -> None:
        super().__init__()
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        models = (inputs.student.logits, inputs.teacher.logits.detach())
        student, teacher = ((logits / self.temperature).softmax(1) for logits in models)
        inter = 1 - correlation(student, teacher).mean()
        intra = 1 - correlation(student.T, teacher.T).mean()
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)


def build(
    student: Outputs,  # noqa: ARG001
    teacher: Outputs,  # noqa: ARG001
    labels: Int64[Tensor, " n"],  # noqa: ARG001
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 4.0,
) -> CorrelationDistillation:
    """Return a loss without parameters.

    Raises:
        ValueError: an option is out of range.
    """
    require_not_negative(beta=beta, gamma=gamma)
    if beta == gamma == 0:
        raise ValueError("beta and gamma are both 0, so that the loss is 0; set one of them in loss.options")
    require_positive(temperature=temperature)
    return CorrelationDistillation(beta, gamma, temperature)


def correlation(a: Float[Tensor, "n m"], b: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
    """Return Pearson's correlation of each row of `a` with the same row of `b`."""
    a, b = (rows - rows.mean(1, keepdim=True) for rows in (a, b))
    norm = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    r: Tensor = (a * b).sum(1) / (norm + EPS)
    return r
