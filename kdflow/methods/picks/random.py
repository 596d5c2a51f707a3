"""No criterion: as many views as the others keep, drawn at random.

The control arm: it shows what of a pick's effect is the choice and what the larger pool.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdflow.methods.picks import Pool


def score(pool: Pool) -> Float[Tensor, " n"]:
    """Noise of the epoch plan. Nobody is asked."""
    return pool.noise
