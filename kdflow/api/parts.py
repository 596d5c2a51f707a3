"""Parts of a method, for a training loop outside of kdflow."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdflow import config
from kdflow.api.settings import find_method, packaged_recipes
from kdflow.config import ExtraLoss, Method
from kdflow.methods.picks import Pool, top_fraction
from kdflow.methods.views import StrongBatch
from kdflow.models import create_model as create_from_recipe
from kdflow.models.features import Outputs
from kdflow.training.step import new_loss


def list_methods() -> list[str]:
    """Return the names of all methods of kdflow."""
    return sorted(packaged_recipes().methods)


def load_method(name: str) -> Method:
    """Return a method of kdflow by its name; `model_copy(update=...)` changes it.

    Raises:
        UserError: there is no method of that name.
    """
    return find_method(name)


def create_model(name: str, classes: int, image_size: int) -> nn.Module:
    """Create a model of recipes/models.yaml with initial weights from torch's global generator.

    Raises:
        UserError: there is no model of that name.
    """
    models = packaged_recipes().models
    if name not in models:
        raise config.unknown_name("model", name, models)
    return create_from_recipe(name, models[name], classes, image_size)


def strong_view(name: str, x: Tensor, generator: torch.Generator | None = None) -> StrongBatch:
    """Return one strong view of each image of a batch.

    Args:
        name: cutmix, mixup, cutout or identity.
        x: the images [b, 3, size, size], normalised.
        generator: a generator on the CPU; None seeds one from torch's global generator.

    Raises:
        UserError: there is no view of that name.
    """
    view: Any = _module("views", name)
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    draws = view.draw([len(x)], x.shape[-1], generator)
    batch: StrongBatch = view.apply(x, {key: value[0].to(x.device) for key, value in draws.items()})
    return batch


def pick_hardest(
    criterion: str, teacher_logits: Tensor, student_logits: Tensor, keep: float = 0.5, tau: float = 4.0
) -> Tensor:
    """Return the indices of the views with the largest scores.

    Args:
        criterion: kl, teacher_entropy, student_entropy or random.
        teacher_logits: the teacher's logits [n, classes] of all views.
        student_logits: those of the student.
        keep: the fraction of the views that is kept.
        tau: the temperature of `kl`.

    Raises:
        UserError: there is no criterion of that name.
    """
    module = _module("picks", criterion)
    noise = torch.rand(len(teacher_logits)).to(teacher_logits.device)
    with torch.no_grad():
        pool = Pool(teacher_logits, lambda: student_logits, tau, noise)
        return top_fraction(module.score(pool), keep)


def build_loss(
    name: str, student: Outputs, teacher: Outputs, labels: Tensor, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Create a loss beside CE and KL, such as dkd; call it with `LossInputs`.

    Args:
        name: a module of kdflow.methods.losses.
        student: outputs of the student for some batch, for their shapes.
        teacher: outputs of the teacher.
        labels: labels of the training set.
        options: options of the loss.

    Raises:
        UserError: there is no loss of that name, it has no such option, or does not support the outputs.
    """
    fields = {"name": name, "weight": 1.0, "options": dict(options or {})}
    settings = config.settings_from_options("loss", ExtraLoss, fields)
    loss = new_loss(settings, on_meta(student), on_meta(teacher), labels)
    assert loss is not None
    return loss


def on_meta(outputs: Outputs) -> Outputs:
    """Return outputs on the meta device: shapes without values."""
    pooled = None if outputs.pooled is None else outputs.pooled.to("meta")
    return Outputs(outputs.logits.to("meta"), tuple(one.to("meta") for one in outputs.maps), pooled)


def _module(kind: str, name: str) -> Any:
    if name not in config.choices(kind):
        raise config.unknown_name(kind, name, config.choices(kind))
    return importlib.import_module(f"kdflow.{config.FOLDERS[kind].replace('/', '.')}.{name}")
