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
    """One square per batch.

    Returns:
        corner: [steps, 2], the row and column of the upper left corner, which may lie outside.
    """
    return {"corner": torch.randint(image_size, (len(sizes), 2), generator=generator) - image_size // 8}


def apply(x: Float[Tensor, "b 3 h w"], draw: Draws) -> StrongBatch:
    """Cut the square out: 0 is the mean of normalised images."""
    size = x.shape[-1]
    row, column = draw["corner"].unbind()
    places = torch.arange(size, device=x.device)
    rows, columns = (((places >= low) & (places < low + size // 4)) for low in (row, column))
    return unmixed(torch.where(rows[:, None] & columns, 0.0, x))
