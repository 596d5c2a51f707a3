"""Identity: x' is x.

The control experiment: a strong view doubles the weight of the distillation term, and this view shows how much of a
gain that explains.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kdflow.methods.views import Draws, StrongBatch, unmixed

MIXES_IMAGES = False


def draw(sizes: Sequence[int], image_size: int, generator: torch.Generator) -> Draws:  # noqa: ARG001
    """Return no draws."""
    return {}


def apply(x: Float[Tensor, "b 3 h w"], draw: Draws) -> StrongBatch:  # noqa: ARG001
    """Return the images unchanged."""
    return unmixed(x)
