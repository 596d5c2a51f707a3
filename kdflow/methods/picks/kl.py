"""Divergence of teacher and student: views with the largest distillation loss are picked (the paper's Eq. 3).

KL(softmax(t / tau) || softmax(s / tau)) with the method's tau.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdflow.methods.losses import kl_per_sample
from kdflow.methods.picks import Pool


def score(pool: Pool) -> Float[Tensor, " n"]:
    """Return the divergence of each view, in nats."""
    return kl_per_sample(pool.teacher_logits, pool.student_outputs(), pool.tau)
