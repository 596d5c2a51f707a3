"""VGG for small images (Simonyan and Zisserman, 2015), with batch norm and one linear layer, named as in CRD."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.models import init_convolutions

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions; `halvings` of them are followed by a max-pool, the last by an average."""

    def __init__(self, num_classes: int, halvings: int, convolutions: Sequence[int]) -> None:
        super().__init__()
        self.halvings = halvings
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
            # The bias does nothing before batch norm, but the known weights have one.
            convolution = nn.Conv2d(width if at else width_in, width, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Logits of normalised images."""
        for at, block in enumerate((self.block0, self.block1, self.block2, self.block3, self.block4)):
            x = block(x)
            if at < self.halvings:
                x = F.max_pool2d(x, 2)
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


def build(num_classes: int, image_size: int, *, convolutions: Sequence[int]) -> VGG:
    """A VGG with so many convolutions in each of its five blocks; images from 64 px up are halved once more."""
    if (
        not isinstance(convolutions, Sequence)
        or len(convolutions) != 5
        or not all(isinstance(n, int) and n > 0 for n in convolutions)
    ):
        raise ValueError(f"convolutions are five numbers from 1 up, one for each block, got {convolutions}")
    if image_size < 8:
        raise ValueError(f"images of {image_size} px; this family needs 8 or more")
    return VGG(num_classes, 4 if image_size >= 64 else 3, convolutions)
