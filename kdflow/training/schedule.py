"""The learning-rate schedule."""

from __future__ import annotations

from kdflow.config import Training


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of the 0-based step `step` of the run.

    It starts at `lr` and is multiplied by `lr_gamma` at each of `lr_milestones`. Milestones are fractions of all steps,
    not epochs, so that they scale with the number of epochs: with [0.625, 0.75, 0.875], 240 epochs decay after 150, 180
    and 210; 960 after 600, 720 and 840; 2 after 1.25, 1.5 and 1.75.
    """
    done = step / (steps_per_epoch * training.epochs)
    return training.lr * training.lr_gamma ** sum(done >= at for at in training.lr_milestones)
