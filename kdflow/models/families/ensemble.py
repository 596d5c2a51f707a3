"""An ensemble of trained models as one teacher (Hinton et al., 2015): its logits combine those of its members.

Formulas for the logits z_k of K members: with `combine: probabilities`, the default, the arithmetic mean of their soft
targets, T log((1/K) sum_k softmax(z_k / T)) + (1/K) sum_k T logsumexp(z_k / T), where T is `temperature`. Its
softmax at T is the mean of the members' softmax at T. The second term is the same for all classes, so that no softmax
depends on it; with it, an ensemble of equal members has their logits. With `combine: logits`, the mean of the logits,
(1/K) sum_k z_k, which is the geometric mean of the soft targets at every temperature, up to normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdflow.config import Architecture
from kdflow.models import create_model

RANGE = (0.01, 1000.0)  # of the temperature, as of a method's


class Ensemble(nn.Module):
    """Models for the same images and classes, whose logits are combined."""

    def __init__(self, members: Sequence[nn.Module], combine: str = "probabilities", temperature: float = 4.0) -> None:
        super().__init__()
        if combine not in ("probabilities", "logits"):
            raise ValueError(f"combine: must be probabilities or logits, not {combine!r}")
        if not RANGE[0] <= temperature <= RANGE[1]:
            raise ValueError(f"temperature: must be from {RANGE[0]:g} to {RANGE[1]:g}, not {temperature}")
        self.members = nn.ModuleList(members)
        self.combine, self.temperature = combine, temperature

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Return the combined logits."""
        logits = torch.stack([member(x) for member in self.members])
        return combine_logits(logits, self.combine, self.temperature)


def combine_logits(
    logits: Float[Tensor, "k b classes"], combine: str, temperature: float
) -> Float[Tensor, "b classes"]:
    """Return the logits of an ensemble of k members, in float32 or float64."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    if combine == "logits":
        return logits.mean(0)
    scaled = logits / temperature
    total = scaled.logsumexp(2, keepdim=True)
    mean = (scaled - total).logsumexp(0) - math.log(len(logits))
    return temperature * (mean + total.mean(0))


def build(
    num_classes: int,
    image_size: int,
    *,
    members: list[dict[str, Any]],
    combine: str = "probabilities",
    temperature: float = 4.0,
) -> Ensemble:
    """Return an ensemble of new models; `members` has their names and recipes.

    Raises:
        ValueError: `combine` or `temperature` has another value than those that are possible.
        UserError: a member's family does not accept its options.
    """
    architectures = [Architecture.model_validate(member) for member in members]
    models = [create_model(one.name, one.model, num_classes, image_size) for one in architectures]
    return Ensemble(models, combine, temperature)
