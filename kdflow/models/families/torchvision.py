"""Any classification model of torchvision, by its name there, with fresh weights."""

from __future__ import annotations

import difflib
from typing import Any

import torchvision
from torch import nn

from kdflow.core.errors import one_line


def build(num_classes: int, image_size: int, *, name: str, **options: Any) -> nn.Module:
    """The model `name` of torchvision.models; it takes the other options as they are."""
    # Of torchvision.models itself: detection, segmentation, video and quantised ones live in its subpackages.
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        close = ", ".join(difflib.get_close_matches(str(name), names)) or "none"
        raise ValueError(f"torchvision has no classification model {name!r}; names like it: {close}")
    if "weights" in options:
        raise ValueError("weights is no option: a model starts with fresh weights")
    if name.startswith("vit_"):  # the only ones that must know it, and `image_size` cannot be among the options
        options["image_size"] = image_size
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    except Exception as error:  # a wrong option fails in any way it likes: TypeError, KeyError, AssertionError
        raise ValueError(f"torchvision's {name}: {one_line(error) or type(error).__name__}") from None
    if getattr(model, "aux_logits", False):
        raise ValueError(f"{name} answers with more than logits in training: set aux_logits: false")
    return model
