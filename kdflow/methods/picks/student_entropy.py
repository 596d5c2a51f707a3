"""Entropy of the student: views that it is least certain of are picked (the paper's Table 2, "S ent.").

H(softmax(s)) at temperature 1.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdflow.methods.losses import entropy_per_sample
from kdflow.methods.picks import Pool


def score(pool: Pool) -> Float[Tensor, " n"]:
    """Return the student's entropy of each view, in nats."""
    return entropy_per_sample(pool.student_outputs())
