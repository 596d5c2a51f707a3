"""Logits and features of any model in one pass. Features are named layers, never a flag on `forward`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.config import Architecture, Model
from kdflow.core.errors import UserError, one_line
from kdflow.models import create_model
from kdflow.models.precision import Forward


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch: logits, feature maps from first to last, and what enters its classifier."""

    logits: Float[Tensor, "b classes"]
    maps: tuple[Float[Tensor, "b _c _h _w"], ...]
    pooled: Float[Tensor, "b d"] | None

    def rows(self, start: int, end: int) -> Outputs:
        """Those of the images from `start` to `end`."""
        pooled = None if self.pooled is None else self.pooled[start:end]
        return Outputs(self.logits[start:end], tuple(feature[start:end] for feature in self.maps), pooled)


class FeatureExtractor:
    """Asks `model` for its `Outputs`; the layers are those that its recipe names, `forward` is how its logits are got.

    Raises:
        UserError: the model has no layer of that name.
    """

    def __init__(self, name: str, model: nn.Module, recipe: Model, forward: Forward | None = None) -> None:
        self.model, self.recipe, self.forward = model, recipe, model if forward is None else forward
        self.gives_features = bool(recipe.features) or recipe.head is not None
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
            logits = self.forward(x)
            pooled = None if self.recipe.head is None else _full(self.seen[_HEAD])
            return Outputs(logits, tuple(_full(self.seen[layer]) for layer in self.recipe.features), pooled)
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


def without_features(model: Model) -> Model:
    """A recipe without layers, for who asks for no features."""
    return model.model_copy(update={"features": (), "head": None})


def _full(feature: Tensor) -> Tensor:
    """Losses compute in float32, whatever the model did."""
    return feature.float() if feature.dtype == torch.bfloat16 else feature


_HEAD = "input of the head"  # no layer is called so


def output_shapes(architecture: Architecture, classes: int, image_size: int) -> Outputs:
    """`Outputs` of two images without computing them, on the meta device: they have shapes and no values.

    Raises:
        UserError: the model does not take images of this size, or answers with no logits.
    """
    name = architecture.name
    with torch.device("meta"):
        model = create_model(name, architecture.model, classes, image_size).eval()
    x = torch.zeros(2, 3, image_size, image_size, device="meta")
    ask = FeatureExtractor(name, model, architecture.model)
    try:
        said = ask(x)
        if said.logits.shape != (2, classes):
            raise ValueError(f"it answers with {list(said.logits.shape)} instead of logits [2, {classes}]")
    except Exception as error:  # a library's model fails in any way it likes
        reason = one_line(error) or type(error).__name__
        raise UserError(f"model {name}: cannot take images of {image_size} px: {reason}") from None
    return said


# --- what losses compare --------------------------------------------------------------------------------------

Map = Float[Tensor, "_b _c _h _w"]


def paired_middle_features(loss: str, student: Outputs, teacher: Outputs) -> list[tuple[Map, Map]]:
    """All feature maps but the first, in pairs of student and teacher; the last feature is the pooled one.

    Raises:
        ValueError: there are none, or one model has more than the other.
    """
    n_student, n_teacher = len(student.maps), len(teacher.maps)
    named = f"the student names {n_student} feature layer{'s' * (n_student != 1)}, the teacher {n_teacher}: {loss}"
    if n_student != n_teacher:
        raise ValueError(f"{named} compares them one by one; name equally many under features in recipes/models.yaml")
    if n_student < 2:
        raise ValueError(f"{named} compares all but the first; name two or more under features in recipes/models.yaml")
    return [(ours, theirs.detach()) for ours, theirs in zip(student.maps[1:], teacher.maps[1:], strict=True)]


def match_spatial_size(ours: Map, theirs: Map) -> tuple[Map, Map]:
    """Both maps, each side of the larger average-pooled to the smaller's."""
    height, width = (min(sizes) for sizes in zip(ours.shape[2:], theirs.shape[2:], strict=True))
    return _pooled_to(ours, height, width), _pooled_to(theirs, height, width)


def _pooled_to(maps: Map, height: int, width: int) -> Map:
    return maps if maps.shape[2:] == (height, width) else F.adaptive_avg_pool2d(maps, (height, width))


def pooled_features(
    loss: str, student: Outputs, teacher: Outputs
) -> tuple[Float[Tensor, "b d_student"], Float[Tensor, "b d_teacher"]]:
    """Both models' pooled features.

    Raises:
        ValueError: one of them has none.
    """
    ours, theirs = student.pooled, teacher.pooled
    if ours is None or theirs is None:
        who = "student" if ours is None else "teacher"
        raise ValueError(
            f"{loss} compares pooled features, and the {who} has none; "
            "name its classifier as head in recipes/models.yaml"
        )
    return ours, theirs.detach()
