"""Neuron selectivity transfer (Huang and Wang, 2017): channels of both models respond to the same regions of an image.

Formula, after their Section 4: sum over layers of the squared maximum mean discrepancy
mean_ij k(s_i, s_j) + mean_ij k(t_i, t_j) - 2 mean_ij k(s_i, t_j), averaged over the batch. s_i is channel i of the
student's feature map of one image, flattened and divided by its length; t_j is the same of the teacher; and
k(x, y) = (x . y)^2 is the polynomial kernel. The models may have different numbers of channels. The layers are all
feature maps but the first, paired in their order. Where two maps differ in size, each side of the larger is
average-pooled to the smaller's. The layers are those of CRD's code (Tian et al., 2020); the paper has the last only.

Settings: none. The usual weight is 50.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.methods.losses import LossInputs
from kdflow.models.features import Map, Outputs, match_spatial_size, paired_middle_features

NEEDS_FEATURES = True


class NeuronSelectivity(nn.Module):
    """Maximum mean discrepancy of the channels of all middle layers."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        pairs = paired_middle_features("nst", inputs.student, inputs.teacher)
        return torch.stack([discrepancy(*match_spatial_size(*pair)) for pair in pairs]).sum()


def build(student: Outputs, teacher: Outputs, labels: Int64[Tensor, " n"]) -> NeuronSelectivity:  # noqa: ARG001
    """Return a loss without parameters.

    Raises:
        ValueError: the models' feature maps cannot be paired.
    """
    paired_middle_features("nst", student, teacher)
    return NeuronSelectivity()


def discrepancy(student: Map, teacher: Map) -> Float[Tensor, ""]:
    """Return the squared maximum mean discrepancy of the channels, averaged over the batch."""
    s, t = (F.normalize(maps.flatten(2), dim=2) for maps in (student, teacher))
    return _kernel(s, s) + _kernel(t, t) - 2 * _kernel(s, t)


def _kernel(x: Float[Tensor, "b _c n"], y: Float[Tensor, "b _d n"]) -> Float[Tensor, ""]:
    """Return the mean of k over all pairs of channels of each image."""
    return (x @ y.mT).square().mean()
