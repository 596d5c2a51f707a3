"""Divergences of teacher and student logits, and the contract of the losses beside CE and KL.

Each other module of this package is a loss that a recipe may name. It defines:

- `NEEDS_FEATURES`: True if the loss compares feature maps or pooled features, False if logits are enough. A loss on
  logits works with any model, with stored teacher logits, and with a folded or compiled model.
- `NEEDS_BATCH`: True if the loss compares images of the batch with each other. Without it, each of several processes
  per run computes the loss for its share of the batch, so that the loss has to be a mean over images. With it, each
  process computes the same loss of the whole batch.
- `build(student, teacher, labels, **options)`: returns an `nn.Module`. `student` and `teacher` are `Outputs` of one
  batch on the meta device, for their shapes, and `labels` are the labels of the training set. The module is trained
  together with the student and saved in its checkpoint. `build` raises ValueError for an option or a pair of models
  that it does not support; the message says what to change.
- optionally, a method `draw(b, generator)` of the module: the random numbers of one step for `b` images, one tensor,
  from a generator on the CPU that is seeded for the step and is the same in each process.

The module is called as `loss(inputs)` with a `LossInputs` and returns a scalar, without the weight of the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.models.features import Outputs


@dataclass(frozen=True)
class LossInputs:
    """One batch, as a loss gets it; with several processes per run, the share of this process unless NEEDS_BATCH.

    Attributes:
        student: outputs of the student, with gradients.
        teacher: outputs of the teacher for the same images, without gradients.
        labels: classes of the images.
        index: indices of the images in the training set.
        run_fraction: the current epoch, counted from 1, divided by the epochs of the run; 1 in the last epoch.
        draws: the random numbers of this step, on the device, from the loss's `draw`; None without it.
        teacher_head: the teacher's classifier, from its pooled feature to its logits; its weights are not trained.
            None if the teacher has no pooled feature, or the loss needs no features.
    """

    student: Outputs
    teacher: Outputs
    labels: Int64[Tensor, " b"]
    index: Int64[Tensor, " b"]
    run_fraction: float
    draws: Tensor | None = None
    teacher_head: Callable[[Tensor], Tensor] | None = None


def step_draws(loss: nn.Module | None, b: int, seed: int, device: torch.device) -> Tensor | None:
    """Return the random numbers of a step that a loss draws for `b` images, the same on each device; None without."""
    draw: Any = getattr(loss, "draw", None)
    return None if draw is None else draw(b, torch.Generator().manual_seed(seed)).to(device)


def require_not_negative(**options: float) -> None:
    """Refuse options of a loss that are not finite and 0 or more.

    Raises:
        ValueError: one is negative or not finite.
    """
    _require(options, lambda value: 0 <= value < math.inf, "finite and 0 or more")


def require_positive(**options: float) -> None:
    """Refuse options of a loss that are not finite and more than 0.

    Raises:
        ValueError: one is 0, negative or not finite.
    """
    _require(options, lambda value: 0 < value < math.inf, "finite and more than 0")


def require_fraction(**options: float) -> None:
    """Refuse options of a loss that are not from 0 to 1.

    Raises:
        ValueError: one is not from 0 to 1.
    """
    _require(options, lambda value: 0 <= value <= 1, "from 0 to 1")


def _require(options: dict[str, float], is_allowed: Callable[[float], bool], allowed: str) -> None:
    for name, value in options.items():
        if not is_allowed(value):
            raise ValueError(f"{name}: must be {allowed}, not {value}; set it in loss.options")


def kl_per_sample(
    teacher: Float[Tensor, "b classes"], student: Float[Tensor, "b classes"], tau: float
) -> Float[Tensor, " b"]:
    """Return KL(softmax(teacher / tau) || softmax(student / tau)) of each sample, in nats (the paper's Eq. 3)."""
    p_teacher = F.log_softmax(teacher / tau, dim=1)
    p_student = F.log_softmax(student / tau, dim=1)
    return F.kl_div(p_student, p_teacher, reduction="none", log_target=True).sum(1)


def entropy_per_sample(logits: Float[Tensor, "b classes"]) -> Float[Tensor, " b"]:
    """Return the entropy of softmax(logits) of each sample, in nats."""
    p = F.log_softmax(logits, dim=1)
    return -(p.exp() * p).sum(1)


def distillation_loss(
    teacher: Float[Tensor, "b classes"], student: Float[Tensor, "b classes"], tau: float
) -> Float[Tensor, ""]:
    """Return tau^2 times the mean KL over the batch: the second term of the paper's Eq. 1 without its alpha."""
    return kl_per_sample(teacher, student, tau).mean() * tau**2
