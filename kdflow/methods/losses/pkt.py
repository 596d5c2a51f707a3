"""Probabilistic knowledge transfer (Passalis and Tefas, 2018): each image picks its neighbours as for the teacher.

Formula: mean over all b x b pairs of p_t log((p_t + eps) / (p_s + eps)), eps = 1e-7. p_ij = k_ij / sum_j k_ij is how
likely image i picks image j of the batch (itself included) by the kernel k_ij = (cos(f_i, f_j) + 1) / 2 of their
pooled features f, whose widths may differ between student and teacher.

Settings: none. The usual weight is 30000: the mean over b x b entries, as in CRD's code (Tian et al., 2020), is small.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.models.features import Outputs, pooled_features

EPS = 1e-7


class ProbabilisticTransfer(nn.Module):
    """Compares the neighbours of each image in the batch."""

    def forward(self, student: Outputs, teacher: Outputs, *_: object) -> Float[Tensor, ""]:
        """The loss of a batch, without its weight."""
        ours, theirs = (neighbours(pooled) for pooled in pooled_features("pkt", student, teacher))
        return (theirs * ((theirs + EPS) / (ours + EPS)).log()).mean()


def build(student: Outputs, teacher: Outputs, labels: Int64[Tensor, " n"]) -> ProbabilisticTransfer:  # noqa: ARG001
    """A loss without parameters.

    Raises:
        ValueError: a model names no pooled feature.
    """
    pooled_features("pkt", student, teacher)
    return ProbabilisticTransfer()


def neighbours(pooled: Float[Tensor, "b _d"]) -> Float[Tensor, "b b"]:
    """p: how likely each image (row) picks each image of the batch, by the cosine of their features."""
    direction = F.normalize(pooled, eps=EPS)
    kernel = (direction @ direction.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)
