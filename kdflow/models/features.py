"""Logits and features of any model in one pass, from forward hooks on named layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.config import Architecture, Model
from kdflow.core.errors import UserError, one_line
from kdflow.models import create_model_on_meta
from kdflow.models.precision import Forward


@dataclass(frozen=True)
class Outputs:
    """A model's outputs for a batch: logits, feature maps from first to last, and the classifier's input."""

    logits: Float[Tensor, "b classes"]
    maps: tuple[Float[Tensor, "b _c _h _w"], ...]
    pooled: Float[Tensor, "b d"] | None

    def rows(self, start: int, end: int) -> Outputs:
        """Return the outputs of the images from `start` to `end`."""
        pooled = None if self.pooled is None else self.pooled[start:end]
        return Outputs(self.logits[start:end], tuple(feature[start:end] for feature in self.maps), pooled)

    def map_features(self, function: Callable[[Tensor], Tensor]) -> Outputs:
        """Return the outputs whose feature maps and pooled feature are those after `function`."""
        pooled = None if self.pooled is None else function(self.pooled)
        return Outputs(self.logits, tuple(function(feature) for feature in self.maps), pooled)


class FeatureExtractor:
    """Computes the `Outputs` of `model`, with the layers that its recipe names.

    Args:
        forward: computes the logits, such as a compiled model; None uses `model`.

    Raises:
        UserError: the model has no layer of that name.
    """

    def __init__(self, name: str, model: nn.Module, recipe: Model, forward: Forward | None = None) -> None:
        self.model, self.recipe, self.forward = model, recipe, model if forward is None else forward
        self.gives_features = bool(recipe.features) or recipe.head is not None
        layers = dict(model.named_modules())
        for field, layer in [("features", layer) for layer in recipe.features] + [("head", recipe.head)]:
            if layer is not None and layer not in layers:
                raise UserError(f"recipes/models.yaml: {name}.{field}: the model has no layer {layer!r}")
        self.layers = {layer: layers[layer] for layer in recipe.features}
        self.head = None if recipe.head is None else layers[recipe.head]
        self.kept: dict[str, Tensor] | None = None  # outputs of the layers, if their hooks are kept
        self.recording = True  # kept hooks do nothing in other passes of the model

    def __call__(self, x: Float[Tensor, "b 3 h w"]) -> Outputs:
        """Run one forward pass."""
        if self.kept is not None:
            self.recording = True
            logits = self.forward(x)
            self.recording = False
            return self._outputs(logits, self.kept)
        seen: dict[str, Tensor] = {}
        # The hooks exist during this pass only: others keep nothing, and the model can be pickled.
        hooks = self._add_hooks(seen)
        try:
            logits = self.forward(x)
        finally:
            for hook in hooks:
                hook.remove()
        return self._outputs(logits, seen)

    def keep_hooks(self) -> None:
        """Add the hooks for good: torch.compile cannot add them within a graph."""
        self.kept, self.recording = {}, False
        self._add_hooks(self.kept)

    def _add_hooks(self, seen: dict[str, Tensor]) -> list[Any]:
        hooks = [layer.register_forward_hook(self._keep_output(seen, name)) for name, layer in self.layers.items()]
        if self.head is not None:
            hooks.append(self.head.register_forward_pre_hook(self._keep_input(seen)))
        return hooks

    def _keep_output(self, seen: dict[str, Tensor], layer: str) -> Any:
        def hook(_module: nn.Module, _inputs: Sequence[Any], output: Any) -> None:
            if self.recording:
                seen[layer] = output

        return hook

    def _keep_input(self, seen: dict[str, Tensor]) -> Any:
        def hook(_module: nn.Module, inputs: Sequence[Any]) -> None:
            if self.recording:
                seen[_HEAD] = inputs[0]

        return hook

    def _outputs(self, logits: Tensor, seen: dict[str, Tensor]) -> Outputs:
        pooled = None if self.head is None else _to_float32(seen.pop(_HEAD))
        return Outputs(logits, tuple(_to_float32(seen.pop(layer)) for layer in self.layers), pooled)


def without_features(model: Model) -> Model:
    """Return the recipe without layers, for logits only."""
    return model.model_copy(update={"features": (), "head": None})


def _to_float32(feature: Tensor) -> Tensor:
    """Convert bfloat16 to float32, in which losses are computed."""
    return feature.float() if feature.dtype == torch.bfloat16 else feature


_HEAD = "input of the head"  # no layer has this name


def output_shapes(architecture: Architecture, classes: int, image_size: int) -> Outputs:
    """Return `Outputs` of two images on the meta device: shapes without values.

    Raises:
        UserError: the model does not accept images of this size, or does not return logits.
    """
    name = architecture.name
    model = create_model_on_meta(name, architecture.model, classes, image_size).eval()
    return outputs_of_two(FeatureExtractor(name, model, architecture.model), name, classes, image_size)


def outputs_of_two(extractor: FeatureExtractor, name: str, classes: int, image_size: int) -> Outputs:
    """Return `Outputs` of two black images, on the device of the model.

    Raises:
        UserError: the model does not accept images of this size, or does not return logits.
    """
    device = next((parameter.device for parameter in extractor.model.parameters()), None)
    try:
        outputs = extractor(torch.zeros(2, 3, image_size, image_size, device=device))
        if outputs.logits.shape != (2, classes):
            raise ValueError(f"it returns {list(outputs.logits.shape)} instead of logits [2, {classes}]")
    except Exception as error:  # Libraries' models raise exceptions of many types.
        reason = one_line(error) or type(error).__name__
        raise UserError(f"model {name}: does not accept images of {image_size} px: {reason}") from None
    return outputs


# --- features of both models ----------------------------------------------------------------------------------

Map = Float[Tensor, "_b _c _h _w"]


def paired_middle_features(loss: str, student: Outputs, teacher: Outputs) -> list[tuple[Map, Map]]:
    """Return pairs of the student's and the teacher's feature maps, all but the first.

    Raises:
        ValueError: there are none, or the models have different numbers of maps.
    """
    n_student, n_teacher = len(student.maps), len(teacher.maps)
    named = f"the student has {n_student} feature layer{'s' * (n_student != 1)}, the teacher {n_teacher}: {loss}"
    if n_student != n_teacher:
        raise ValueError(f"{named} compares them one by one; list as many features for both in recipes/models.yaml")
    if n_student < 2:
        raise ValueError(f"{named} compares all but the first; list two or more features in recipes/models.yaml")
    return [(s, t.detach()) for s, t in zip(student.maps[1:], teacher.maps[1:], strict=True)]


def match_spatial_size(student: Map, teacher: Map) -> tuple[Map, Map]:
    """Average-pool both maps to the smaller height and the smaller width."""
    height, width = (min(sizes) for sizes in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return _pool_to(student, height, width), _pool_to(teacher, height, width)


def _pool_to(maps: Map, height: int, width: int) -> Map:
    return maps if maps.shape[2:] == (height, width) else F.adaptive_avg_pool2d(maps, (height, width))


def pooled_features(
    loss: str, student: Outputs, teacher: Outputs
) -> tuple[Float[Tensor, "b d_student"], Float[Tensor, "b d_teacher"]]:
    """Return the pooled features of both models.

    Raises:
        ValueError: one of them has none.
    """
    if student.pooled is None or teacher.pooled is None:
        model = "student" if student.pooled is None else "teacher"
        raise ValueError(
            f"{loss} compares pooled features, and the {model} has none; "
            "name its classifier as head in recipes/models.yaml"
        )
    return student.pooled, teacher.pooled.detach()
