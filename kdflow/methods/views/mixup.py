"""mixup (Zhang et al., 2018): each image is blended with its partner.

x' = lambda x_a + (1 - lambda) x_b for an image and its partner, lambda ~ Beta(1, 1) once per batch; partners are a
permutation of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kdflow.methods.views import Draws, StrongBatch, mixed_batch

MIXES_IMAGES = True


def draw(sizes: Sequence[int], image_size: int, generator: torch.Generator) -> Draws:  # noqa: ARG001
    """Draw one lambda per batch and a permutation of each batch; Beta(1, 1) is the uniform distribution.

    Returns:
        lam: [steps], lambda.
        partner: [steps, max(sizes)]; a step uses the first `size` entries of its row.
    """
    lam = torch.rand(len(sizes), generator=generator)
    partner = torch.zeros(len(sizes), max(sizes), dtype=torch.long)
    for row, size in zip(partner, sizes, strict=True):
        row[:size] = torch.randperm(size, generator=generator)
    return {"lam": lam, "partner": partner}


def apply(x: Float[Tensor, "b 3 h w"], draw: Draws) -> StrongBatch:
    """Blend each image with its partner."""
    lam = draw["lam"]
    return mixed_batch(lam * x + (1 - lam) * x[draw["partner"][: len(x)]], draw["partner"], lam)
