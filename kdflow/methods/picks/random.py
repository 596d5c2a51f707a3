"""Random pick: as many views as with the other criteria, drawn at random.

The control experiment: it separates the effect of the criterion from that of the larger pool.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdflow.methods.picks import Pool


def score(pool: Pool) -> Float[Tensor, " n"]:
    """Return the noise of the epoch plan; neither teacher nor student is used."""
    return pool.noise
