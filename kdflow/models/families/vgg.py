"""VGG for small images (Simonyan and Zisserman, 2015) with batch norm, one linear layer, and CRD's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.models import init_convolutions

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions; max-pooling follows the first `max_pools` of them, average pooling the last."""

    def __init__(self, num_classes: int, max_pools: int, convolutions: Sequence[int]) -> None:
        super().__init__()
        self.max_pools = max_pools
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            self._block(width_in, width, n)
            for width_in, width, n in zip((3, *WIDTHS[:-1]), WIDTHS, convolutions, strict=True)
        )
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        init_convolutions(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @staticmethod
    def _block(width_in: int, width: int, convolutions: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for at in range(convolutions):
            # The bias has no effect before batch norm, but published weights have one.
            convolution = nn.Conv2d(width if at else width_in, width, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Logits of normalised images."""
        for at, block in enumerate((self.block0, self.block1, self.block2, self.block3, self.block4)):
            x = block(x)
            if at < self.max_pools:
                x = F.max_pool2d(x, 2)
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


def build(num_classes: int, image_size: int, *, convolutions: Sequence[int]) -> VGG:
    """Build a VGG; `convolutions` are the layers of its five blocks. It has a fourth max-pool for images from 64 px."""
    if (
        not isinstance(convolutions, Sequence)
        or len(convolutions) != 5
        or not all(isinstance(n, int) and n > 0 for n in convolutions)
    ):
        raise ValueError(f"convolutions must be five integers of at least 1, one per block, got {convolutions}")
    if image_size < 8:
        raise ValueError(f"images of {image_size} px are too small, this family needs 8 or more")
    return VGG(num_classes, 4 if image_size >= 64 else 3, convolutions)
