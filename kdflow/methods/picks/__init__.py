"""Pick: which of a pool of strong views the student learns from (the paper's Section 3.2 (2)).

Every other module of this package is a criterion: `score(pool) -> [n]`, larger is harder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Pool:
    """What a criterion may look at: the teacher's logits, the student's if it asks for them, and uniform noise."""

    teacher_logits: Float[Tensor, "n classes"]
    student_outputs: Callable[[], Float[Tensor, "n classes"]]
    tau: float
    noise: Float[Tensor, " n"]


def top_fraction(scores: Float[Tensor, " n"], keep: float) -> Int64[Tensor, " k"]:
    """Indices of the largest scores, a share `keep` of them (rounded down, at least one), over the whole pool."""
    return scores.topk(max(1, int(len(scores) * keep + 1e-9)), sorted=False).indices


def pick_ratio(scores: Float[Tensor, " n"], kept: Int64[Tensor, " k"]) -> Float[Tensor, ""]:
    """r: the mean score of what was kept over the mean score of the pool (the paper's Eq. 4); 1 if all scores are 0."""
    mean = scores.mean()
    return (scores[kept].mean() / mean).where(mean != 0, 1.0)
