"""Similarity-preserving distillation (Tung and Mori, 2019): images alike for the teacher are alike for the student.

Formula: ||G_s - G_t||^2 / b^2, the squared Frobenius norm over a batch of b images. G = F F^T with each row divided
by its length, where the rows of F [b, c h w] are the flattened last feature maps. The maps of student and
teacher may be of any shapes.

Settings: none. The usual weight is 3000.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.models.features import Outputs


class SimilarityPreserving(nn.Module):
    """Compares which images of the batch are alike."""

    def forward(self, student: Outputs, teacher: Outputs, *_: object) -> Float[Tensor, ""]:
        """The loss of a batch, without its weight."""
        return F.mse_loss(similarity(student.maps[-1]), similarity(teacher.maps[-1].detach()))


def build(student: Outputs, teacher: Outputs, labels: Int64[Tensor, " n"]) -> SimilarityPreserving:  # noqa: ARG001
    """A loss without parameters.

    Raises:
        ValueError: a model names no feature maps.
    """
    for who, outputs in (("student", student), ("teacher", teacher)):
        if not outputs.maps:
            raise ValueError(
                f"sp compares the last feature maps, and the {who} names none; "
                "name its layers under features in recipes/models.yaml"
            )
    return SimilarityPreserving()


def similarity(maps: Float[Tensor, "b _c _h _w"]) -> Float[Tensor, "b b"]:
    """G: the products of all pairs of images, each row of length 1."""
    flat = maps.flatten(1)
    return F.normalize(flat @ flat.T)
