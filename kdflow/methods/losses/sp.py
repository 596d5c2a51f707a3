"""Similarity-preserving distillation (Tung and Mori, 2019): images similar for the teacher are so for the student.

Formula: ||G_s - G_t||^2 / b^2, the squared Frobenius norm over a batch of b images. G = F F^T with each row divided
by its length, where the rows of F [b, c h w] are the flattened last feature maps. The maps of student and
teacher may be of any shapes.

Settings: none. The usual weight is 3000.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.methods.losses import LossInputs
from kdflow.models.features import Outputs

NEEDS_FEATURES = True
NEEDS_BATCH = True


class SimilarityPreserving(nn.Module):
    """Mean squared difference of the similarity matrices of the batch."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        student, teacher = inputs.student.maps[-1], inputs.teacher.maps[-1]
        return F.mse_loss(similarity(student), similarity(teacher.detach()))


def build(student: Outputs, teacher: Outputs, labels: Int64[Tensor, " n"]) -> SimilarityPreserving:  # noqa: ARG001
    """Return a loss without parameters.

    Raises:
        ValueError: a model has no feature maps.
    """
    for role, outputs in (("student", student), ("teacher", teacher)):
        if not outputs.maps:
            raise ValueError(
                f"sp compares the last feature maps, and the {role} has none; list its features in recipes/models.yaml"
            )
    return SimilarityPreserving()


def similarity(maps: Float[Tensor, "b _c _h _w"]) -> Float[Tensor, "b b"]:
    """Return G: the products of all pairs of images, each row with an L2 norm of 1."""
    flat = maps.flatten(1)
    return F.normalize(flat @ flat.T)
