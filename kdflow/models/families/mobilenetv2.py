"""MobileNetV2 for small images (Sandler et al., 2018), in CRD's variant and with its parameter names.

Differences from the paper: the second stage has stride 1, ReLU takes the place of ReLU6, widths are truncated instead
of rounded to a multiple of 8, and the first block keeps its 1x1 convolution although its expansion is 1.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from kdflow.models import init_convolutions

# Channels at width 1, number of blocks and stride of the first block of each stage.
STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
HEAD = 1280


def _unit(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(width_in, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU()]


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, and a 1x1 projection without ReLU."""

    def __init__(self, width_in: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width_in * expansion
        self.residual = stride == 1 and width_in == width
        self.conv = nn.Sequential(
            *_unit(width_in, inner, 1),
            *_unit(inner, inner, 3, stride, groups=inner),
            *_unit(inner, width, 1)[:-1],
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Add the input if it has the shape of the output."""
        return x + self.conv(x) if self.residual else self.conv(x)  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    """A stem of stride 2, seven stages, a 1x1 head that is never narrower than 1280, and global average pooling."""

    def __init__(self, num_classes: int, expansion: int, width: float) -> None:
        super().__init__()
        before, stages = int(32 * width), []
        self.conv1 = nn.Sequential(*_unit(3, before, 3, stride=2))
        for at, (channels, blocks, stride) in enumerate(STAGES):
            stage = []
            for block in range(blocks):
                after = int(channels * width)
                stage.append(InvertedResidual(before, after, 1 if block else stride, expansion if at else 1))
                before = after
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.Sequential(*stages)
        head = max(HEAD, int(HEAD * width))
        self.conv2 = nn.Sequential(*_unit(before, head, 1))
        linear = nn.Linear(head, num_classes)
        self.classifier = nn.Sequential(linear)
        init_convolutions(self)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Logits of normalised images."""
        x = self.conv2(self.blocks(self.conv1(x)))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


def build(num_classes: int, image_size: int, *, expansion: int, width: float) -> MobileNetV2:
    """Build a MobileNetV2 with expansion factor `expansion` and `width` times the paper's channels before the head."""
    if not isinstance(expansion, int) or expansion < 1:
        raise ValueError(f"expansion must be an integer of at least 1, got {expansion}")
    # Below 8 channels torch 2.14's convolution corrupts memory in its backward pass (CPU, channels last).
    if not isinstance(width, int | float) or not 0.5 <= width <= 100:
        raise ValueError(f"width must be a number from 0.5 to 100, got {width}")
    if image_size < 16:
        raise ValueError(f"images of {image_size} px are too small, this family needs 16 or more")
    return MobileNetV2(num_classes, expansion, width)
