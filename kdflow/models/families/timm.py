"""Any model of timm by name, with initial weights. timm is an optional dependency: pip install 'kdflow[timm]'."""

from __future__ import annotations

import difflib
import importlib.util
from typing import Any

import torch
from torch import nn

from kdflow.core.errors import one_line

# Options that load weights, or after which the model does not return logits.
REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "features_only")


def import_timm() -> Any:
    """Return the package timm.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise ValueError("timm is not installed: pip install 'kdflow[timm]'")
    import timm

    return timm


def build(num_classes: int, image_size: int, *, name: str, **options: Any) -> nn.Module:
    """Build the model `name` of timm with its other options, for the image size if the model has a fixed one."""
    timm = import_timm()
    state = torch.get_rng_state()
    names = timm.list_models()  # names without a prefix: hf-hub: would download weights
    if name not in names:
        close = ", ".join(difflib.get_close_matches(str(name), names)) or "none"
        raise ValueError(f"timm has no model {name!r}; similar names: {close}")
    for option in REFUSED:
        if option in options:
            raise ValueError(f"{option} is not allowed: models start with initial weights and return logits")
    try:
        return _create(name, num_classes, {"img_size": image_size, **options})
    except Exception as error:  # Wrong options raise exceptions of many types.
        if "img_size" in options or "'img_size'" not in str(error):
            raise ValueError(f"timm's {name}: {one_line(error) or type(error).__name__}") from None
    torch.set_rng_state(state)
    try:
        return _create(name, num_classes, options)  # a model for images of any size
    except Exception as error:
        raise ValueError(f"timm's {name}: {one_line(error) or type(error).__name__}") from None


def _create(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
    return model
