"""Knowledge review (Chen et al., 2021): each layer of the teacher teaches its layer of the student and all deeper ones.

Formula, after their Section 3: w times the sum over levels of HCL(g(r_l), t_l). The levels are all feature maps
but the first, paired in their order, and the pooled feature as a map of 1x1; s_l and t_l are the maps of student and
teacher.

Attention based fusion goes from the deepest level to the first: r_l = a1 u_l + a2 r_(l+1). There u_l = BN(conv(s_l)), a
1x1 convolution to the width of all levels, and r_(l+1) is enlarged to its size. The two maps a1 and a2 are the sigmoid
of a 1x1 convolution of u_l and r_(l+1). At the deepest level, r_l = u_l. Then r_l takes the size of t_l, and
g = BN(conv), a 3x3 convolution, its channels. All these layers are trained. Sizes change to the nearest pixel.

The hierarchical context loss HCL is a weighted mean of squared errors: of the two maps, with weight 1, and of both
after average pooling to 4x4, 2x2 and 1x1, with weights 1/2, 1/4 and 1/8; sizes that are not smaller than the map are
left out. The warm-up is w = min(epoch / (warmup * epochs), 1), where epochs count from 1.

Settings: width (default 512), of which at most the width of the student's pooled feature is used; warmup (20 / 240).
The authors' code compares with the teacher's maps before their last ReLU; this one with those that recipes/models.yaml
lists. The weight of that code is 5 for most pairs on CIFAR-100, 8 for ResNet32x4 -> ShuffleNetV2, 0.6 for
ResNet56 -> ResNet20 and 1 for ResNet110 -> ResNet32.
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.methods.losses import LossInputs
from kdflow.models.features import Map, Outputs, paired_middle_features, pooled_features

NEEDS_FEATURES = True


class Fusion(nn.Module):
    """One level: fuses the student's map with the deeper levels, and predicts the teacher's map."""

    def __init__(self, student_channels: int, width: int, teacher_channels: int, has_deeper: bool) -> None:
        super().__init__()
        self.reduce = _convolution(student_channels, width, 1)
        self.attention = nn.Conv2d(2 * width, 2, kernel_size=1) if has_deeper else None
        self.predict = _convolution(width, teacher_channels, 3)

    def forward(self, student: Map, deeper: Map | None, size: torch.Size) -> tuple[Map, Map]:
        """Return the fused map at the size of the teacher's map, and the prediction of the latter."""
        fused: Tensor = self.reduce(student)
        if self.attention is not None and deeper is not None:
            deeper = _resize(deeper, fused.shape[2:])
            weight = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()
            fused = weight[:, :1] * fused + weight[:, 1:] * deeper
        fused = _resize(fused, size)
        return fused, self.predict(fused)


class KnowledgeReview(nn.Module):
    """Context losses of all levels, fused from the deepest on."""

    def __init__(self, levels: list[tuple[Map, Map]], width: int, warmup: float) -> None:
        super().__init__()
        self.warmup = warmup
        channels = [(student.shape[1], teacher.shape[1]) for student, teacher in levels]
        self.fusions = nn.ModuleList(Fusion(s, width, t, i > 0) for i, (s, t) in enumerate(channels))

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        losses, fused = [], None
        for fusion, (student, teacher) in zip(self.fusions, levels_of(inputs.student, inputs.teacher), strict=True):
            fused, prediction = fusion(student, fused, teacher.shape[2:])
            losses.append(context_loss(prediction, teacher))
        warmup = min(inputs.run_fraction / self.warmup, 1.0) if self.warmup > 0 else 1.0
        return warmup * torch.stack(losses).sum()


def build(
    student: Outputs,
    teacher: Outputs,
    labels: Int64[Tensor, " n"],  # noqa: ARG001
    *,
    width: int = 512,
    warmup: float = 20 / 240,
) -> KnowledgeReview:
    """Return fresh fusions, drawn from torch's global generator.

    Raises:
        ValueError: the models' features cannot be paired, or an option is out of range.
    """
    if width < 1:
        raise ValueError(f"width: must be 1 or more, not {width}; set it in loss.options")
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup: must be from 0 to 1, a fraction of the run, not {warmup}; set it in loss.options")
    levels = levels_of(student, teacher)
    return KnowledgeReview(levels, min(width, levels[0][0].shape[1]), warmup)


def levels_of(student: Outputs, teacher: Outputs) -> list[tuple[Map, Map]]:
    """Return the pairs of maps of student and teacher, from the pooled feature to the second feature map."""
    pairs = paired_middle_features("reviewkd", student, teacher)
    s, t = pooled_features("reviewkd", student, teacher)
    return [(s[:, :, None, None], t[:, :, None, None]), *reversed(pairs)]


def context_loss(student: Map, teacher: Map) -> Float[Tensor, ""]:
    """Return HCL, the weighted mean of the squared errors at several sizes."""
    sizes = [size for size in (4, 2, 1) if size < min(teacher.shape[2:])]
    pooled = [[F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher)] for size in sizes]
    errors = [F.mse_loss(s, t) for s, t in itertools.chain([(student, teacher)], pooled)]
    weights = [2.0**-i for i in range(len(errors))]
    return torch.stack([weight * error for weight, error in zip(weights, errors, strict=True)]).sum() / sum(weights)


def _convolution(channels_in: int, channels: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


def _resize(maps: Map, size: torch.Size) -> Map:
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="nearest")
