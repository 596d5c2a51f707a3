"""Correlation congruence (Peng et al., 2019): relations between images of a batch are the same in both embeddings.

Formula: mean over the b - 1 pairs of consecutive images of sum_c |d_i,c| |d_(i+1),c|, where d = W_s f_s - W_t f_t is
the difference of the embedded pooled features (linear layers with bias, both trained). A batch of one image has no
pair, and a loss of 0. This is the short form that CRD's code (Tian et al., 2020) has from the authors; it leaves out
the kernels of the paper.

Settings: dim (default 128), the width of the embedding. The usual weight is 0.02.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn

from kdflow.methods.losses import LossInputs
from kdflow.models.features import Outputs, pooled_features

NEEDS_FEATURES = True
NEEDS_BATCH = True


class CorrelationCongruence(nn.Module):
    """Products of the embedding differences of consecutive images."""

    def __init__(self, student_width: int, teacher_width: int, dim: int) -> None:
        super().__init__()
        self.embed_student = nn.Linear(student_width, dim)
        self.embed_teacher = nn.Linear(teacher_width, dim)

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        student, teacher = pooled_features("cc", inputs.student, inputs.teacher)
        difference: Tensor = (self.embed_student(student) - self.embed_teacher(teacher)).abs()
        return (difference[:-1] * difference[1:]).sum() / max(len(difference) - 1, 1)


def build(
    student: Outputs,
    teacher: Outputs,
    labels: Int64[Tensor, " n"],  # noqa: ARG001
    *,
    dim: int = 128,
) -> CorrelationCongruence:
    """Return fresh embeddings, drawn from torch's global generator.

    Raises:
        ValueError: a model names no pooled feature, or `dim` is not positive.
    """
    if dim < 1:
        raise ValueError(f"dim: must be 1 or more, not {dim}; set it in loss.options")
    student_feature, teacher_feature = pooled_features("cc", student, teacher)
    return CorrelationCongruence(student_feature.shape[1], teacher_feature.shape[1], dim)
