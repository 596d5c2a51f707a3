"""The interface for Python programs. `import kdflow` loads it, and with it torch, when a name of it is first used."""

from kdflow.api.distill import Distillation, distill
from kdflow.api.parts import (
    build_loss,
    create_model,
    list_methods,
    load_method,
    pick_hardest,
    strong_view,
)
from kdflow.api.settings import Layers
from kdflow.api.step import DistillationStep
from kdflow.api.tracking import RunTracker
from kdflow.config import BaseView, ExtraLoss, Method, Pick, StrongView, Training
from kdflow.core.errors import UserError
from kdflow.methods.losses import LossInputs, distillation_loss
from kdflow.methods.views import StrongBatch
from kdflow.models.features import Outputs
from kdflow.training.record import Accuracy, Epoch

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
