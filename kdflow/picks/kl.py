"""The divergence of teacher and student: what the student would minimise, pick maximises (Eq. 3)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdflow.losses import kl_per_sample


def score(teacher: Float[Tensor, "n classes"], student: Float[Tensor, "n classes"], tau: float) -> Float[Tensor, " n"]:
    """KL(teacher || student) at temperature tau."""
    return kl_per_sample(teacher, student, tau)
