"""Wide ResNets (Zagoruyko and Komodakis, 2016), without dropout, with the parameter names of CRD's teachers."""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.models import init_convolutions


class PreactivatedBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU; the shortcut is 1x1 if the width changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut: nn.Module | None = None
        if width_in != width:
            self.convShortcut = nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Add the block's two convolutions to its shortcut."""
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """A 3x3 stem, three stages of `depth` = 6n + 4 layers at strides 1, 2, 2, and global average pooling."""

    def __init__(self, num_classes: int, depth: int, width: int) -> None:
        super().__init__()
        if not isinstance(depth, int) or depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 (10, 16, 22, ...), got {depth}")
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width must be an integer of at least 1, got {width}")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = self._stage(16, 16 * width, blocks, stride=1)
        self.block2 = self._stage(16 * width, 32 * width, blocks, stride=2)
        self.block3 = self._stage(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    @staticmethod
    def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = PreactivatedBlock(width_in, width, stride)
        rest = (PreactivatedBlock(width, width, 1) for _ in range(blocks - 1))
        return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))  # "layer" is part of CRD's parameter names

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Logits of normalised images."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))  # type: ignore[no-any-return]


def build(num_classes: int, image_size: int, *, depth: int, width: int) -> WideResNet:  # noqa: ARG001
    """Build WRN-`depth`-`width`, for images of any size."""
    return WideResNet(num_classes, depth, width)
