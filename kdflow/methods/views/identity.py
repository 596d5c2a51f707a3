"""Identity: x' is x again.

The control arm: a strong view doubles the weight of the teacher's part of the loss, and this shows how much of a
gain is only that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kdflow.methods.views import Draws, StrongBatch, unmixed

MIXES_IMAGES = False


def draw(sizes: Sequence[int], image_size: int, generator: torch.Generator) -> Draws:  # noqa: ARG001
    """Nothing is drawn."""
    return {}


def apply(x: Float[Tensor, "b 3 h w"], draw: Draws) -> StrongBatch:  # noqa: ARG001
    """The images as they are."""
    return unmixed(x)
