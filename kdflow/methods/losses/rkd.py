"""Relational knowledge distillation (Park et al., 2019): distances and angles between images agree in both embeddings.

Formula, after their Section 3.2: distance mean_ij h(D_s,ij - D_t,ij) + angle mean_ijk h(A_s,ijk - A_t,ijk), where h is
the Huber loss: x^2 / 2 for |x| < 1, otherwise |x| - 1/2. D_ij = ||f_i - f_j|| / mu compares the pooled features f of
two images of the batch; mu is the mean distance of two different images. A_ijk is the cosine of the angle at image j
between the directions to i and to k, and 0 if one of them is j. The means are over all b^2 pairs and b^3 triplets,
as in CRD's code (Tian et al., 2020); the paper writes sums.

Settings: distance (default 25.0) and angle (50.0), the weights that the paper has for classification. So the usual
weight of the loss is 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.methods.losses import LossInputs, require_not_negative
from kdflow.models.features import Outputs, pooled_features

NEEDS_FEATURES = True
NEEDS_BATCH = True
EPS = 1e-12


class RelationalDistillation(nn.Module):
    """Huber losses of the distances and the angles between the images of a batch."""

    def __init__(self, distance: float, angle: float) -> None:
        super().__init__()
        self.distance, self.angle = distance, angle

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        features = pooled_features("rkd", inputs.student, inputs.teacher)
        (d_student, a_student), (d_teacher, a_teacher) = (relations(pooled) for pooled in features)
        loss: Tensor = self.distance * F.smooth_l1_loss(d_student, d_teacher)
        return loss + self.angle * F.smooth_l1_loss(a_student, a_teacher)


def build(
    student: Outputs,
    teacher: Outputs,
    labels: Int64[Tensor, " n"],  # noqa: ARG001
    *,
    distance: float = 25.0,
    angle: float = 50.0,
) -> RelationalDistillation:
    """Return a loss without parameters.

    Raises:
        ValueError: a model names no pooled feature, or a weight is negative.
    """
    require_not_negative(distance=distance, angle=angle)
    pooled_features("rkd", student, teacher)
    return RelationalDistillation(distance, angle)


def relations(pooled: Float[Tensor, "b _d"]) -> tuple[Float[Tensor, "b b"], Float[Tensor, "b b b"]]:
    """Return the distances of all pairs, divided by their mean, and the cosines of the angles of all triplets."""
    difference = pooled[None] - pooled[:, None]
    length = torch.linalg.vector_norm(difference, dim=2)  # its gradient is 0 where the length is
    b = len(pooled)
    mean = length.sum() / max(b * (b - 1), 1)
    direction = difference / length.masked_fill(length == 0, 1)[..., None]
    return length / mean.clamp(min=EPS), direction @ direction.mT
