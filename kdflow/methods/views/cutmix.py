"""CutMix (Yun et al., 2019): a box of each image is replaced by the same box of its partner.

lambda ~ Beta(1, 1) and one box per batch with sides sqrt(1 - lambda) of the image's, its centre uniform, clipped at
the border; partners are a derangement of the batch. The image's own share is what the box leaves of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kdflow.methods.views import Draws, StrongBatch, mixed_batch

MIXES_IMAGES = True


def draw(sizes: Sequence[int], image_size: int, generator: torch.Generator) -> Draws:
    """One box per batch and a derangement of each batch; Beta(1, 1) is the uniform distribution.

    Args:
        sizes: the number of images of each step's batch.

    Returns:
        box: [steps, 4], rows top to bottom and columns left to right, end excluded.
        partner: [steps, max(sizes)], of which a step uses its first `size` entries.
    """
    steps = len(sizes)
    side = image_size * (1 - torch.rand(steps, generator=generator)).sqrt()
    centre = torch.randint(image_size, (steps, 2), generator=generator)
    half = (side.long() // 2)[:, None]
    low, high = (centre - half).clamp(min=0), (centre + half).clamp(max=image_size)
    partner = torch.zeros(steps, max(sizes), dtype=torch.long)
    for row, size in zip(partner, sizes, strict=True):
        row[:size] = derangement(size, generator)
    return {"box": torch.stack([low, high], dim=2).flatten(1), "partner": partner}


def derangement(n: int, generator: torch.Generator) -> Tensor:
    """A uniform permutation of 0 to n - 1 that leaves nothing in its place; of one element, that element."""
    itself = torch.arange(n)
    while True:  # a share of 1/e of all permutations passes, for n = 2 a half
        permutation = torch.randperm(n, generator=generator)
        if n == 1 or not bool((permutation == itself).any()):
            return permutation


def apply(x: Float[Tensor, "b 3 h w"], draw: Draws) -> StrongBatch:
    """Paste the partner's box. A mask instead of slices keeps shapes static, without asking the device."""
    top, bottom, left, right = draw["box"].unbind()
    height, width = x.shape[2:]
    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    own = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed_batch(torch.where(inside, x[draw["partner"][: len(x)]], x), draw["partner"], own)
