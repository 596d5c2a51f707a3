"""Knowledge distillation as a pipeline: every number of the paper is a build target.

`kdflow.api` documents the names for Python programs. They are loaded on their first use, because torch takes seconds.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "BaseView",
    "Distillation",
    "DistillationStep",
    "Epoch",
    "ExtraLoss",
    "Layers",
    "LossInputs",
    "Method",
    "Outputs",
    "Pick",
    "RunTracker",
    "StrongBatch",
    "StrongView",
    "Training",
    "UserError",
    "build_loss",
    "create_model",
    "distill",
    "distillation_loss",
    "list_methods",
    "load_method",
    "pick_hardest",
    "strong_view",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("kdflow.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
