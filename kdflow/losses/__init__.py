"""Divergences of teacher and student per sample: one definition for the loss and for pick."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def kl_per_sample(
    teacher: Float[Tensor, "b classes"], student: Float[Tensor, "b classes"], tau: float
) -> Float[Tensor, " b"]:
    """KL(softmax(teacher / tau) || softmax(student / tau)) of each sample, in nats (the paper's Eq. 3)."""
    p_teacher = F.log_softmax(teacher / tau, dim=1)
    p_student = F.log_softmax(student / tau, dim=1)
    return F.kl_div(p_student, p_teacher, reduction="none", log_target=True).sum(1)


def distillation_loss(
    teacher: Float[Tensor, "b classes"], student: Float[Tensor, "b classes"], tau: float
) -> Float[Tensor, ""]:
    """tau^2 times the mean KL over the batch: the second term of the paper's Eq. 1 without its alpha."""
    return kl_per_sample(teacher, student, tau).mean() * tau**2
