"""ResNets of bottleneck blocks (He et al., 2016, Section 4.1) for small images, with CRD's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.models import init_convolutions

STEM = 64
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution to four times the width; the shortcut is 1x1 if stride or width change."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        width_out = EXPANSION * width
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out)
            )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Add the block's three convolutions to its shortcut."""
        shortcut = self.shortcut(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class BottleneckResNet(nn.Module):
    """A 3x3 stem of stride 1 and no max-pool, four stages at strides 1, 2, 2, 2, and global average pooling."""

    def __init__(self, num_classes: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(STEM, 64, blocks[0], stride=1)
        self.layer2 = self._stage(64 * EXPANSION, 128, blocks[1], stride=2)
        self.layer3 = self._stage(128 * EXPANSION, 256, blocks[2], stride=2)
        self.layer4 = self._stage(256 * EXPANSION, 512, blocks[3], stride=2)
        self.linear = nn.Linear(512 * EXPANSION, num_classes)
        init_convolutions(self)

    @staticmethod
    def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = Bottleneck(width_in, width, stride)
        return nn.Sequential(first, *(Bottleneck(width * EXPANSION, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Logits of normalised images."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def build(num_classes: int, image_size: int, *, blocks: Sequence[int]) -> BottleneckResNet:
    """Build a ResNet with `blocks` bottleneck blocks in its four stages; [3, 4, 6, 3] is ResNet-50."""
    if not isinstance(blocks, Sequence) or len(blocks) != 4 or not all(isinstance(n, int) and n > 0 for n in blocks):
        raise ValueError(f"blocks must be four integers of at least 1, one per stage, got {blocks}")
    if image_size < 8:
        raise ValueError(f"images of {image_size} px are too small, this family needs 8 or more")
    return BottleneckResNet(num_classes, blocks)
