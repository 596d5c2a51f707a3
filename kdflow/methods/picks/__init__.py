"""Pick: the student is trained with the hardest strong views of a pool (the paper's Section 3.2 (2)).

Each other module of this package is a criterion that a recipe may name. It defines `score(pool)`, which returns one
number per view; views with larger scores are harder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Pool:
    """Inputs of a criterion: teacher logits, a function that computes student logits, and uniform noise."""

    teacher_logits: Float[Tensor, "n classes"]
    student_outputs: Callable[[], Float[Tensor, "n classes"]]
    tau: float
    noise: Float[Tensor, " n"]


def top_fraction(scores: Float[Tensor, " n"], keep: float) -> Int64[Tensor, " k"]:
    """Return the indices of the fraction `keep` (rounded down, at least one) of the pool with the largest scores."""
    return scores.topk(max(1, int(len(scores) * keep + 1e-9)), sorted=False).indices


def pick_ratio(scores: Float[Tensor, " n"], picked: Int64[Tensor, " k"]) -> Float[Tensor, ""]:
    """Return r: the mean score of the picked views over that of the pool (the paper's Eq. 4); 1 if all scores are 0."""
    mean = scores.mean()
    return (scores[picked].mean() / mean).where(mean != 0, 1.0)
