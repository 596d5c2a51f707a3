"""Any model of timm, by its name there, with fresh weights. timm is an extra: pip install -e '.[timm]'."""

from __future__ import annotations

import difflib
import importlib.util
from typing import Any

from torch import nn

from kdflow.core.errors import one_line

# What would load weights, or make of the model something that does not answer with logits.
REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "features_only")


def build(num_classes: int, image_size: int, *, name: str, **options: Any) -> nn.Module:  # noqa: ARG001
    """The model `name` of timm; it takes the other options as they are, transformers want `img_size` there."""
    if importlib.util.find_spec("timm") is None:
        raise ValueError("timm is not installed: pip install -e '.[timm]'")
    import timm

    names = timm.list_models()  # plain names: one with a prefix such as hf-hub: would download its weights
    if name not in names:
        close = ", ".join(difflib.get_close_matches(str(name), names)) or "none"
        raise ValueError(f"timm has no model {name!r}; names like it: {close}")
    for option in REFUSED:
        if option in options:
            raise ValueError(f"{option} is no option: a model starts with fresh weights and answers with logits")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
    except Exception as error:  # a wrong option fails in any way it likes: TypeError, KeyError, AssertionError
        raise ValueError(f"timm's {name}: {one_line(error) or type(error).__name__}") from None
    return model
