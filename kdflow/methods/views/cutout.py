"""Cutout (DeVries and Taylor, 2017): a square of each image is set to the mean colour.

One square per batch with sides a quarter of the image's (8, 16 and 56 px at 32, 64 and 224), its centre uniform,
clipped at the border.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kdflow.methods.views import Draws, StrongBatch, unmixed

MIXES_IMAGES = False


def draw(sizes: Sequence[int], image_size: int, generator: torch.Generator) -> Draws:
    """Draw one square per batch.

    Returns:
        corner: [steps, 2], row and column of the upper left corner in pixels, which may be outside of the image.
    """
    return {"corner": torch.randint(image_size, (len(sizes), 2), generator=generator) - image_size // 8}


def apply(x: Float[Tensor, "b 3 h w"], draw: Draws) -> StrongBatch:
    """Set the square to 0, the mean of normalised images."""
    size = x.shape[-1]
    row, column = draw["corner"].unbind()
    pixels = torch.arange(size, device=x.device)
    rows, columns = (((pixels >= low) & (pixels < low + size // 4)) for low in (row, column))
    return unmixed(torch.where(rows[:, None] & columns, 0.0, x))
