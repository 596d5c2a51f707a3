"""Attention transfer (Zagoruyko and Komodakis, 2017): the student matches the teacher's spatial attention maps.

Formula, after their Eq. 2: sum over layers of mean((Q_s - Q_t)^2), where Q = v / ||v|| and v is the flattened mean
over channels of f^2 of one image's feature map f; the mean is over the batch and all positions of the map. The layers
are all feature maps but the first, paired in their order. Where two maps differ in size, each side of the larger
is average-pooled to the smaller's.

Settings: none. The square and the mean (in place of the paper's norm and sum) are those of CRD's code
(Tian et al., 2020), for which the usual weight of 1000 is meant.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.methods.losses import LossInputs
from kdflow.models.features import Outputs, match_spatial_size, paired_middle_features

NEEDS_FEATURES = True


class AttentionTransfer(nn.Module):
    """Mean squared difference of the attention maps of all middle layers."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        pairs = paired_middle_features("at", inputs.student, inputs.teacher)
        matched = (match_spatial_size(student, teacher) for student, teacher in pairs)
        return torch.stack([F.mse_loss(attention(student), attention(teacher)) for student, teacher in matched]).sum()


def build(student: Outputs, teacher: Outputs, labels: Int64[Tensor, " n"]) -> AttentionTransfer:  # noqa: ARG001
    """Return a loss without parameters.

    Raises:
        ValueError: the models' feature maps cannot be paired.
    """
    paired_middle_features("at", student, teacher)
    return AttentionTransfer()


def attention(maps: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b h*w"]:
    """Return Q: the mean over channels of f^2, flattened, with an L2 norm of 1."""
    return F.normalize(maps.square().mean(1).flatten(1))
