"""Pick: which half of a pool of strong views the student learns from (the paper's Section 3.2 (2)).

Every other module of this package is a criterion: `score(teacher, student, tau) -> [n]`, larger is harder.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor


def hardest_half(scores: Float[Tensor, " n"]) -> Int64[Tensor, " half"]:
    """Indices of the larger half of the scores, over the whole pool and not per image."""
    return scores.topk(len(scores) // 2, sorted=False).indices
