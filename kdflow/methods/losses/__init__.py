"""Divergences of teacher and student per sample: one definition for the loss and for pick.

Every other module of this package is a loss of its own beside CE and KL. Its
`build(student, teacher, labels, **options)` is given `Outputs` of one batch (for their shapes) and the labels
of the training set, and returns an `nn.Module` that trains with the student and is kept in its checkpoint:
`loss(student, teacher, index, generator)` takes the `Outputs` of a batch, the places of its images in
the training set, and the step's own generator (on the CPU), and returns a scalar without its weight
(`*_` stands for what a loss does not need).
It raises ValueError for an option or a pair of models that does not suit it, saying what to change.
"""

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


def entropy_per_sample(logits: Float[Tensor, "b classes"]) -> Float[Tensor, " b"]:
    """Entropy of softmax(logits) of each sample, in nats."""
    p = F.log_softmax(logits, dim=1)
    return -(p.exp() * p).sum(1)


def distillation_loss(
    teacher: Float[Tensor, "b classes"], student: Float[Tensor, "b classes"], tau: float
) -> Float[Tensor, ""]:
    """tau^2 times the mean KL over the batch: the second term of the paper's Eq. 1 without its alpha."""
    return kl_per_sample(teacher, student, tau).mean() * tau**2
