"""Curriculum temperature (Li et al., 2023): KL at a temperature that is trained to make it harder for the student.

Formula: T^2 KL(softmax(t / T) || softmax(s / T)), mean over the batch, with one temperature T for all images (the
paper's Global-T). T = start + range sigmoid(a), and a is trained; at first, a = 1. The student descends and a ascends:
the gradient of a is multiplied by -w. The curriculum is w = (1 - cos(pi min(epoch / (rise * epochs), 1))) / 2, where
epochs count from 1: it rises from 0 to 1.

Settings: start (default 1.0), range (20.0), rise (10 / 240), the fraction of the run in which w rises to 1. They are
those of the authors' code, and so is the weight of 0.9 beside a cross-entropy of weight 0.1. The optimiser treats a as
all weights, with weight decay.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kdflow.methods.losses import LossInputs, kl_per_sample, require_fraction, require_not_negative, require_positive
from kdflow.models.features import Outputs

NEEDS_FEATURES = False


class CurriculumTemperature(nn.Module):
    """KL at a temperature whose gradient is reversed."""

    def __init__(self, start: float, span: float, rise: float) -> None:
        super().__init__()
        self.start, self.span, self.rise = start, span, rise
        self.a = nn.Parameter(torch.ones(()))

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        progress = min(inputs.run_fraction / self.rise, 1.0) if self.rise > 0 else 1.0
        w = (1 - math.cos(math.pi * progress)) / 2
        a = self.a.detach() - w * (self.a - self.a.detach())  # the value of a, and -w times its gradient
        temperature = self.start + self.span * a.sigmoid()
        student, teacher = inputs.student.logits / temperature, inputs.teacher.logits.detach() / temperature
        loss: Tensor = kl_per_sample(teacher, student, 1.0).mean() * temperature**2
        return loss


def build(
    student: Outputs,  # noqa: ARG001
    teacher: Outputs,  # noqa: ARG001
    labels: Int64[Tensor, " n"],  # noqa: ARG001
    *,
    start: float = 1.0,
    range: float = 20.0,  # noqa: A002 (the name of the option)
    rise: float = 10 / 240,
) -> CurriculumTemperature:
    """Return a loss with one parameter.

    Raises:
        ValueError: an option is out of range.
    """
    require_positive(start=start)
    require_not_negative(range=range)
    require_fraction(rise=rise)
    return CurriculumTemperature(start, range, rise)
