"""Variational information distillation (Ahn et al., 2019): the student's features predict the teacher's.

Formula: sum over layers of mean(((mu(f_s) - f_t)^2 / v_c + log v_c) / 2), the mean over batch, channels c and
positions: the negative log-likelihood of the teacher's feature map f_t under a normal distribution around the
prediction from the student's, without its constant. mu is three 1x1 convolutions without bias (student's channels ->
teacher's -> teacher's -> teacher's) with ReLU between; v_c = softplus(a_c) + 1e-5 is one trained variance per
channel. The layers are all feature maps but the first, paired in their order; where two maps differ in size, each
side of the larger is average-pooled to the smaller's. The loss is not zero where student and teacher agree, and can
be negative.

Settings: variance (default 5.0), the initial value of v_c. The usual weight is 1.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.methods.losses import LossInputs
from kdflow.models.features import Map, Outputs, match_spatial_size, paired_middle_features

NEEDS_FEATURES = True
EPS = 1e-5


class Regressor(nn.Module):
    """Prediction of the teacher's feature map of one layer, with a variance for each channel."""

    def __init__(self, student_channels: int, channels: int, variance: float) -> None:
        super().__init__()
        widths = pairwise((student_channels, channels, channels, channels))
        first, second, third = (nn.Conv2d(before, after, kernel_size=1, bias=False) for before, after in widths)
        self.mean = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.raw_variance = nn.Parameter(torch.full((channels, 1, 1), math.log(math.expm1(variance - EPS))))

    def forward(self, student: Map, teacher: Map) -> Float[Tensor, ""]:
        """Return the negative log-likelihood of the teacher's map, given the student's."""
        student, teacher = match_spatial_size(student, teacher)
        variance = F.softplus(self.raw_variance) + EPS
        error: Tensor = self.mean(student) - teacher
        return (error.square() / variance + variance.log()).mean() / 2


class VariationalInformation(nn.Module):
    """One regressor for each pair of middle feature maps."""

    def __init__(self, pairs: list[tuple[Map, Map]], variance: float) -> None:
        super().__init__()
        channels = ((student.shape[1], teacher.shape[1]) for student, teacher in pairs)
        self.regressors = nn.ModuleList(Regressor(student, teacher, variance) for student, teacher in channels)

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        pairs = paired_middle_features("vid", inputs.student, inputs.teacher)
        layers = zip(self.regressors, pairs, strict=True)
        return torch.stack([regressor(student, teacher) for regressor, (student, teacher) in layers]).sum()


def build(
    student: Outputs,
    teacher: Outputs,
    labels: Int64[Tensor, " n"],  # noqa: ARG001
    *,
    variance: float = 5.0,
) -> VariationalInformation:
    """Return fresh regressors, drawn from torch's global generator.

    Raises:
        ValueError: the models' feature maps cannot be paired, or `variance` is too small.
    """
    if not EPS < variance < math.inf:
        raise ValueError(f"variance: must be finite and more than {EPS}, not {variance}; set it in loss.options")
    return VariationalInformation(paired_middle_features("vid", student, teacher), variance)
