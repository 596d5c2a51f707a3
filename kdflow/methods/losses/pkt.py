"""Probabilistic knowledge transfer (Passalis and Tefas, 2018): images have the same neighbours in both feature spaces.

Formula: mean over all b x b pairs of p_t log((p_t + eps) / (p_s + eps)), eps = 1e-7. p_ij = k_ij / sum_j k_ij is the
probability that image i selects image j of the batch (itself included), where the kernel
k_ij = (cos(f_i, f_j) + 1) / 2 compares their pooled features f. The widths of student and teacher may differ.

Settings: none. The usual weight is 30000: the mean over b x b entries, as in CRD's code (Tian et al., 2020), is small.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.methods.losses import LossInputs
from kdflow.models.features import Outputs, pooled_features

NEEDS_FEATURES = True
NEEDS_BATCH = True
EPS = 1e-7


class ProbabilisticTransfer(nn.Module):
    """KL divergence of the selection probabilities of each image, averaged over all pairs of the batch."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        features = pooled_features("pkt", inputs.student, inputs.teacher)
        p_student, p_teacher = (selection_probabilities(pooled) for pooled in features)
        return (p_teacher * ((p_teacher + EPS) / (p_student + EPS)).log()).mean()


def build(student: Outputs, teacher: Outputs, labels: Int64[Tensor, " n"]) -> ProbabilisticTransfer:  # noqa: ARG001
    """Return a loss without parameters.

    Raises:
        ValueError: a model names no pooled feature.
    """
    pooled_features("pkt", student, teacher)
    return ProbabilisticTransfer()


def selection_probabilities(pooled: Float[Tensor, "b _d"]) -> Float[Tensor, "b b"]:
    """Return p: the probability that each image (row) selects each image of the batch, from cosine similarities."""
    direction = F.normalize(pooled, eps=EPS)
    kernel = (direction @ direction.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)
