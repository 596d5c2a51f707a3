"""The learning-rate schedule."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

from kdflow.config import Training


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of the 0-based step `step` of the run.

    It starts at `lr`. With `multistep`, it is multiplied by `lr_gamma` after each of `lr_milestones`. Milestones are
    fractions of all epochs, rounded down to whole epochs as in the paper's code: with [0.625, 0.75, 0.875], 240 epochs
    decay after 150, 180 and 210; 60 after 37, 45 and 52. The first epoch always has `lr`. With `cosine`, it falls in
    every step as in torch's CosineAnnealingLR. During `warmup_epochs`, it rises in every step as in torch's LinearLR.
    """
    warmup = training.warmup_epochs * steps_per_epoch
    if step < warmup:
        return training.lr * (step + 1) / (warmup + 1)
    if training.schedule == "cosine":
        steps = training.epochs * steps_per_epoch - warmup
        return training.lr * (1 + math.cos(math.pi * (step - warmup) / steps)) / 2
    epoch = step // steps_per_epoch
    decays = decay_epochs(training.lr_milestones, training.epochs)
    return training.lr * training.lr_gamma ** sum(epoch >= decay for decay in decays)


@cache  # it is needed in every step
def decay_epochs(milestones: tuple[float, ...], epochs: int) -> tuple[int, ...]:
    """Return the number of epochs before each decay of the learning rate."""
    # As fractions of decimal numbers: in floating point 0.57 * 100 is below 57.
    return tuple(max(1, int(Fraction(str(at)) * epochs)) for at in milestones)
