"""Correlation congruence (Peng et al., 2019): what holds between two images holds for the student as well.

Formula: mean over the b - 1 pairs of consecutive images of sum_c |d_i,c| |d_(i+1),c|, where d = W_s f_s - W_t f_t is
the difference of the embedded pooled features (linear layers with bias, both trained). A batch of one image has no
pair, and no loss. This is the short form that CRD's code (Tian et al., 2020) has from the authors; the
kernels of the paper are not in it.

Settings: dim (default 128), the width of the embedding. The usual weight is 0.02.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn

from kdflow.models.features import Outputs, pooled_features


class CorrelationCongruence(nn.Module):
    """Embeds both pooled features and compares their differences of neighbouring images."""

    def __init__(self, student_width: int, teacher_width: int, dim: int) -> None:
        super().__init__()
        self.embed_student = nn.Linear(student_width, dim)
        self.embed_teacher = nn.Linear(teacher_width, dim)

    def forward(self, student: Outputs, teacher: Outputs, *_: object) -> Float[Tensor, ""]:
        """The loss of a batch, without its weight."""
        ours, theirs = pooled_features("cc", student, teacher)
        apart: Tensor = (self.embed_student(ours) - self.embed_teacher(theirs)).abs()
        return (apart[:-1] * apart[1:]).sum() / max(len(apart) - 1, 1)


def build(
    student: Outputs,
    teacher: Outputs,
    labels: Int64[Tensor, " n"],  # noqa: ARG001
    *,
    dim: int = 128,
) -> CorrelationCongruence:
    """Fresh embeddings from torch's global generator.

    Raises:
        ValueError: a model names no pooled feature, or `dim` is not positive.
    """
    if dim < 1:
        raise ValueError(f"dim: must be 1 or more, not {dim}; set it in loss.options")
    ours, theirs = pooled_features("cc", student, teacher)
    return CorrelationCongruence(ours.shape[1], theirs.shape[1], dim)
