"""Settings of a run whose models are modules of a program."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from kdflow import config
from kdflow.config import PROJECT_FILES, Architecture, BaseView, Method, Model, Recipes, RunSettings, Training
from kdflow.core.errors import UserError

AS_IT_IS = BaseView(crop=0, flip=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""The base view of images that a dataset has already augmented and normalised."""


@dataclass(frozen=True)
class Layers:
    """Named layers of a model, for losses on features: see `features` and `head` of recipes/models.yaml.

    The outputs of `features` are the feature maps, from first to last; the input of `head` is the pooled feature. The
    names are those of `model.named_modules()`.
    """

    features: tuple[str, ...] = ()
    head: str | None = None


@functools.cache
def packaged_recipes() -> Recipes:
    """Return the built-in recipes."""
    return config.load_recipes(PROJECT_FILES)


def find_method(method: str | Method) -> Method:
    """Return a method, or the one of this name in recipes/methods.yaml.

    Raises:
        UserError: there is no method of that name.
    """
    if isinstance(method, Method):
        return method
    known = packaged_recipes().methods
    if method not in known:
        raise config.unknown_name("method", method, known)
    return known[method]


def find_training(given: Mapping[str, object]) -> Training:
    """Return the training settings of recipes/user_folder.yaml, changed by `given`.

    Raises:
        UserError: a setting does not exist or has a wrong value.
    """
    default = packaged_recipes().user_folder.training
    return config.settings_from_options("training", Training, {**default.model_dump(exclude_unset=True), **given})


def architecture(model: nn.Module, layers: Layers | None) -> Architecture:
    """Return a description of a module: its class in the place of the family, and its named layers."""
    kind, layers = type(model), layers or Layers()
    # A class within a function has a name that no recipe could have; the checks of recipes are left out.
    recipe = Model.model_construct(
        family=f"{kind.__module__}:{kind.__qualname__}",
        options={},
        features=tuple(layers.features),
        head=layers.head,
        lr=None,
    )
    return Architecture(name=kind.__name__, model=recipe)


def run_settings(
    student: Architecture,
    teacher: Architecture | None,
    method: Method,
    training: Training,
    seed: int,
    *,
    train_images: int = 0,
    classes: int = 0,
    image_size: int = 0,
    base_view: BaseView = AS_IT_IS,
) -> RunSettings:
    """Return the settings of a run; sizes are 0 where they are not known.

    Raises:
        UserError: the method does not fit the models.
    """
    if method.needs_teacher and teacher is None:
        raise UserError("teacher: the method needs one")
    for role, one in (("student", student), ("teacher", teacher)):
        if method.needs_features and one is not None and not (one.model.features and one.model.head):
            raise UserError(f"{role}_layers: the method compares features; give Layers(features=..., head=...)")
    return RunSettings(
        dataset="custom",
        train_images=train_images,
        classes=classes,
        image_size=image_size,
        base_view=base_view,
        role="student",
        architecture=student.name,
        model=student.model,
        teacher=teacher if method.needs_teacher else None,
        method=method,
        training=training,
        seed=seed,
        teacher_logits="online",
    )
