"""The teacher's entropy: where the teacher is least certain (the paper's Table 2, "T ent.").

H(softmax(t)) at temperature 1.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdflow.methods.losses import entropy_per_sample
from kdflow.methods.picks import Pool


def score(pool: Pool) -> Float[Tensor, " n"]:
    """The teacher's entropy of each view, in nats. The student is not asked."""
    return entropy_per_sample(pool.teacher_logits)
