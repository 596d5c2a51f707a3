"""Options of commands that train: one for each setting of training, and for temperature and precision."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

AS_RECIPE = "as in the recipe"
INITIAL = "ResNet18_Weights.DEFAULT or others of torchvision, timm:NAME, a key of recipes/teachers.yaml, or a file"

# Name, type, name of the value, default in --help, and help.
OPTIONS: tuple[tuple[str, type, str | None, str, str], ...] = (
    ("optimizer", str, "sgd|adamw", AS_RECIPE, "Optimiser."),
    ("schedule", str, "multistep|cosine", AS_RECIPE, "Schedule of the learning rate."),
    ("lr", float, None, "as in the recipe; 0.001 for adamw", "Learning rate."),
    ("batch_size", int, None, AS_RECIPE, "Images in one step."),
    ("weight_decay", float, None, "as in the recipe; 0.01 for adamw", "Weight decay."),
    ("warmup_epochs", int, None, "0", "Epochs in which the learning rate rises from 0."),
    ("label_smoothing", float, None, "0", "Part of a label that is spread over all classes."),
    ("ema", float, "DECAY", "none", "Use a moving average of the weights, such as of decay 0.99 in each step."),
    ("clip_grad", float, "NORM", "none", "Limit the norm of the gradient."),
    ("class_balance", str, "weights|sampler", "none", "For unequal classes: weights of the loss, or drawing evenly."),
    ("val_share", float, None, "0", "Fraction of the training images to hold out and measure in every epoch."),
    ("early_stop", int, "EPOCHS", "none", "Stop after this number of epochs without a better accuracy on --val-share."),
    ("teacher_init", str, "WEIGHTS|FILE", "random", f"Weights that a teacher's training starts from: {INITIAL}."),
    ("student_init", str, "WEIGHTS|FILE", "random", "The same for the student."),
    ("freeze_backbone", int, "EPOCHS", "0", "First epochs, in which only the heads of initial weights are trained."),
    ("temperature", float, None, "as in the method", "Temperature of teacher and student in the loss."),
)


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `OPTIONS` and --amp to a command, which gets those that are given as one dictionary, `training`."""
    signature = inspect.signature(command, eval_str=True)
    added = [
        _parameter(name, kind | None, None, typer.Option(metavar=metavar, show_default=default, help=text))
        for name, kind, metavar, default, text in OPTIONS
    ]
    amp = typer.Option("--amp", help="Compute in bfloat16 where torch's autocast does; slow on most CPUs.")
    added.append(_parameter("amp", bool, False, amp))

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        given = {one.name: value for one in added if (value := values.pop(one.name, one.default)) is not None}
        command(**values, training=given)

    kept = [parameter for parameter in signature.parameters.values() if parameter.name != "training"]
    with_options.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    return with_options


def _parameter(name: str, kind: Any, default: object, option: Any) -> inspect.Parameter:
    annotation = Annotated[kind, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
