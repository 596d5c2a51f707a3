"""CutMix (Yun et al., 2019): a box of each image is replaced by the same box of its partner.

lambda ~ Beta(1, 1) and one box per batch with sides sqrt(1 - lambda) of the image's, its centre uniform, clipped at
the border; partners are a derangement of the batch. The weight of the image is the fraction of its area that is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kdflow.methods.views import Draws, StrongBatch, mixed_batch

MIXES_IMAGES = True


def draw(sizes: Sequence[int], image_size: int, generator: torch.Generator) -> Draws:
    """Draw one box per batch and a derangement of each batch; Beta(1, 1) is the uniform distribution.

    Args:
        sizes: the number of images of each step's batch.
        image_size: height and width of the images, in pixels.
        generator: the generator of this view and epoch.

    Returns:
        box: [steps, 4], top, bottom, left and right in pixels, bottom and right excluded.
        partner: [steps, max(sizes)]; a step uses the first `size` entries of its row.
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
    """Draw a uniform permutation of 0 to n - 1 without fixed points; for n = 1 return [0]."""
    identity = torch.arange(n)
    while True:  # about 1/e of all permutations have no fixed point, for n = 2 a half
        permutation = torch.randperm(n, generator=generator)
        if n == 1 or not bool((permutation == identity).any()):
            return permutation


def apply(x: Float[Tensor, "b 3 h w"], draw: Draws) -> StrongBatch:
    """Paste the partner's box; a mask instead of slices keeps shapes static, so that the host need not wait."""
    top, bottom, left, right = draw["box"].unbind()
    height, width = x.shape[2:]
    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    lam = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed_batch(torch.where(inside, x[draw["partner"][: len(x)]], x), draw["partner"], lam)
