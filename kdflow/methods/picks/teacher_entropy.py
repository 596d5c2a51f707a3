"""Entropy of the teacher: views that it is least certain of are picked (the paper's Table 2, "T ent.").

H(softmax(t)) at temperature 1.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdflow.methods.losses import entropy_per_sample
from kdflow.methods.picks import Pool


def score(pool: Pool) -> Float[Tensor, " n"]:
    """Return the teacher's entropy of each view, in nats; the student is not used."""
    return entropy_per_sample(pool.teacher_logits)
