"""ShuffleNetV2 for small images (Ma et al., 2018), in CRD's variant and with its parameter names.

Difference from the paper: a 1x1 stem of stride 1 without max-pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

STEM = 24
BLOCKS = (3, 7, 3)  # of each stage, after its block of stride 2


def _shuffle(left: Float[Tensor, "b c h w"], right: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2*c h w"]:
    """Interleave the channels of both halves: concatenation and channel shuffle in two groups."""
    return torch.stack((left, right), 2).flatten(1, 2)


def _depthwise(width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)


class BasicBlock(nn.Module):
    """Half of the channels pass unchanged, the other half passes three convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise(half, stride=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Shuffle the channels of both halves."""
        left, right = x.chunk(2, dim=1)
        right = F.relu(self.bn1(self.conv1(right)))
        right = self.bn2(self.conv2(right))
        return _shuffle(left, F.relu(self.bn3(self.conv3(right))))


class DownBlock(nn.Module):
    """Two branches of stride 2, each with half of the output's channels."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = _depthwise(width_in, stride=2)
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv2 = nn.Conv2d(width_in, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(width_in, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Shuffle the channels of both branches."""
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        return _shuffle(left, F.relu(self.bn5(self.conv5(right))))


class ShuffleNetV2(nn.Module):
    """A 1x1 stem, three stages of stride 2, a 1x1 head, and global average pooling."""

    def __init__(self, num_classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        *stages, head = widths
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(DownBlock(width_in, width), *(BasicBlock(width) for _ in range(blocks)))
            for width_in, width, blocks in zip((STEM, *stages[:-1]), stages, BLOCKS, strict=True)
        )
        self.conv2 = nn.Conv2d(stages[-1], head, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(head)
        self.linear = nn.Linear(head, num_classes)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Logits of normalised images."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def build(num_classes: int, image_size: int, *, widths: Sequence[int]) -> ShuffleNetV2:
    """Build a ShuffleNetV2; `widths` are the channels of its three stages and its head."""
    # With less than 8 channels per half, torch 2.14's convolution corrupts memory in backward (CPU, channels last).
    if (
        not isinstance(widths, Sequence)
        or len(widths) != 4
        or not all(isinstance(width, int) and width >= 16 and width % 2 == 0 for width in widths)
    ):
        raise ValueError(f"widths must be four even integers of at least 16, of three stages and head, got {widths}")
    if image_size < 8:
        raise ValueError(f"images of {image_size} px are too small, this family needs 8 or more")
    return ShuffleNetV2(num_classes, widths)
