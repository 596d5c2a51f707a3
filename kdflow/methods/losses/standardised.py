"""Logit standardisation (Sun et al., 2024): any loss on logits, of the z-scores of student and teacher.

Formula: loss(z_s, z_t), where z = (logits - mean) / (sd + eps) of each image, with the mean and the standard deviation
over its classes, eps = 1e-7. The deviation has the divisor classes - 1, as in the authors' code; the paper has classes.
The size of a model's logits has no effect on the loss. The loss is T^2 KL(softmax(z_t / T) || softmax(z_s / T)), mean
over the batch, or another loss on logits.

Settings: of (default kl), the loss: kl or another loss on logits, such as dkd; temperature of kl (default 2.0), T. All
other options are those of the loss. The authors' weights are 9 beside a cross-entropy of weight 0.1 for kl, and 9 with
temperature 2 for dkd.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kdflow.config import choices
from kdflow.methods.losses import LossInputs, distillation_loss, require_positive
from kdflow.models.features import Outputs

NEEDS_FEATURES = False
NEEDS_BATCH = True  # since the loss may need it
EPS = 1e-7


class Standardised(nn.Module):
    """A loss of standardised logits."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        student, teacher = (
            replace(outputs, logits=z_score(outputs.logits)) for outputs in (inputs.student, inputs.teacher)
        )
        loss: Tensor = self.loss(replace(inputs, student=student, teacher=teacher))
        return loss


class Divergence(nn.Module):
    """KL of kd."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        return distillation_loss(inputs.teacher.logits.detach(), inputs.student.logits, self.temperature)


def build(
    student: Outputs,
    teacher: Outputs,
    labels: Int64[Tensor, " n"],
    *,
    of: str = "kl",
    **options: Any,
) -> Standardised:
    """Return the loss `of` with its options.

    Raises:
        ValueError: it is not a loss on logits, or an option is out of range.
    """
    if of == "kl":
        return Standardised(_divergence(**options))
    modules = {name: importlib.import_module(f"kdflow.methods.losses.{name}") for name in choices("losses")}
    allowed = [name for name in modules if not modules[name].NEEDS_FEATURES and name != "standardised"]
    if of not in allowed:
        raise ValueError(f"of: must be kl, {', '.join(allowed)}, not {of}; set it in loss.options")
    return Standardised(modules[of].build(student, teacher, labels, **options))


def _divergence(temperature: float = 2.0) -> Divergence:
    require_positive(temperature=temperature)
    return Divergence(temperature)


def z_score(logits: Float[Tensor, "b classes"]) -> Float[Tensor, "b classes"]:
    """Return logits with mean 0 and standard deviation 1 for each image; 0 where all logits are equal."""
    centred = logits - logits.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)  # its gradient is 0 where it is
    z: Tensor = centred / (norm / math.sqrt(max(logits.shape[1] - 1, 1)) + EPS)
    return z
