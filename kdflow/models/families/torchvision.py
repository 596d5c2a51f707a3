"""Any classification model of torchvision by name, with initial weights."""

from __future__ import annotations

import difflib
from typing import Any

import torchvision
from torch import nn

from kdflow.core.errors import one_line


def build(num_classes: int, image_size: int, *, name: str, **options: Any) -> nn.Module:
    """Build the model `name` of torchvision.models with its other options."""
    # Only of torchvision.models: its subpackages have detection, segmentation, video and quantised models.
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        close = ", ".join(difflib.get_close_matches(str(name), names)) or "none"
        raise ValueError(f"torchvision has no classification model {name!r}; similar names: {close}")
    if "weights" in options:
        raise ValueError("weights is not allowed: models start with initial weights")
    if name.startswith("vit_"):  # no other model has this option; the recipe cannot set it
        options["image_size"] = image_size
    if name == "maxvit_t":
        options.setdefault("input_size", (image_size, image_size))
    if name in ("googlenet", "inception_v3"):  # the auxiliary classifiers return more than logits in training
        options = {"aux_logits": False, "init_weights": True, **options}
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    except Exception as error:  # Wrong options raise exceptions of many types.
        raise ValueError(f"torchvision's {name}: {one_line(error) or type(error).__name__}") from None
    if getattr(model, "aux_logits", False):
        raise ValueError(f"{name}: aux_logits must be false: the model returns more than logits in training")
    return model
