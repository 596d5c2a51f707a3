"""Logits and features of any model in one pass. Features are named layers, never a flag on `forward`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdflow.config import Architecture, Model
from kdflow.errors import UserError, one_line
from kdflow.models import create_model


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch: logits, feature maps from first to last, and what enters its classifier."""

    logits: Float[Tensor, "b classes"]
    maps: tuple[Float[Tensor, "b _c _h _w"], ...]
    pooled: Float[Tensor, "b d"] | None

    def first(self, n: int) -> Outputs:
        """Those of the first n images."""
        pooled = None if self.pooled is None else self.pooled[:n]
        return Outputs(self.logits[:n], tuple(feature[:n] for feature in self.maps), pooled)


class FeatureExtractor:
    """Asks `model` for its `Outputs`; the layers are those that its recipe names.

    Raises:
        UserError: the model has no layer of that name.
    """

    def __init__(self, name: str, model: nn.Module, recipe: Model) -> None:
        self.model, self.recipe = model, recipe
        self.seen: dict[str, Tensor] | None = None  # only while asked: other passes keep nothing
        layers = dict(model.named_modules())
        for field, layer in [("features", layer) for layer in recipe.features] + [("head", recipe.head)]:
            if layer is not None and layer not in layers:
                raise UserError(f"recipes/models.yaml: {name}.{field}: the model has no layer {layer!r}")
        for layer in recipe.features:
            layers[layer].register_forward_hook(self._keep_output(layer))
        if recipe.head is not None:
            layers[recipe.head].register_forward_pre_hook(self._keep_input)

    def __call__(self, x: Float[Tensor, "b 3 h w"]) -> Outputs:
        """One forward pass."""
        self.seen = {}
        try:
            logits = self.model(x)
            pooled = None if self.recipe.head is None else self.seen[_HEAD]
            return Outputs(logits, tuple(self.seen[layer] for layer in self.recipe.features), pooled)
        finally:
            self.seen = None

    def _keep_output(self, layer: str) -> Any:
        def hook(_module: nn.Module, _inputs: Sequence[Any], output: Any) -> None:
            if self.seen is not None:
                self.seen[layer] = output

        return hook

    def _keep_input(self, _module: nn.Module, inputs: Sequence[Any]) -> None:
        if self.seen is not None:
            self.seen[_HEAD] = inputs[0]


_HEAD = "input of the head"  # no layer is called so


def probe(architecture: Architecture, classes: int, image_size: int) -> Outputs:
    """`Outputs` of two images without computing them, on the meta device: they have shapes and no values.

    Raises:
        UserError: the model does not take images of this size, or answers with no logits.
    """
    name = architecture.name
    with torch.device("meta"):
        model = create_model(name, architecture.model, classes, image_size).eval()
    try:
        said = FeatureExtractor(name, model, architecture.model)(
            torch.zeros(2, 3, image_size, image_size, device="meta")
        )
    except RuntimeError as error:
        reason = one_line(error)
        raise UserError(f"recipes/models.yaml: {name}: cannot take images of {image_size} px: {reason}") from None
    return said
