"""Settings of training: the optimiser, its schedule, and what changes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from kdflow.config.base import BatchSize, Epochs, LearningRate, OpenFraction, Settings, no_duplicates

Momentum = Annotated[float, Field(ge=0, lt=1)]

WeightDecay = Annotated[float, Field(ge=0, le=1e4)]

OptimizerName = Literal["sgd", "adamw"]

Schedule = Literal["multistep", "cosine"]

WarmupEpochs = Annotated[int, Field(ge=0, le=10**6)]

LabelSmoothing = Annotated[float, Field(ge=0, lt=1)]

GradNorm = Annotated[float, Field(gt=0, le=1e6)]

ClassBalance = Literal["weights", "sampler"]

ADAMW_LR, ADAMW_WEIGHT_DECAY = 1e-3, 1e-2  # torch's defaults


def _optional(default: Any) -> Any:
    """Return a field that settings without it do not have in their hash and in their file."""
    return Field(default, exclude_if=lambda value: value == default)


class Training(Settings):
    """The optimiser and its schedule.

    With `multistep`, `lr` is multiplied by `lr_gamma` at each of `lr_milestones`; milestones are fractions of the run,
    rounded down to whole epochs. With `cosine`, it falls to 0 as half a cosine. Before that, it rises linearly for
    `warmup_epochs`. `epochs` is the number of epochs of a full run. The student is evaluated after every `eval_every`
    epochs and after the last. `momentum` is that of SGD.

    Attributes:
        label_smoothing: the part of a hard label that is spread over all classes.
        ema: decay of the moving average of the weights, which is evaluated and exported in place of the weights.
        clip_grad: largest norm of the gradient.
        class_balance: for classes of unequal size, weights of the cross-entropy, or a sampler that draws images of
            every class equally often.
        val_share: fraction of the training images that is held out, and measured after every epoch.
        early_stop: number of epochs without a higher accuracy on the held-out images, after which training stops. The
            weights with the highest accuracy are exported.
        freeze_backbone: number of epochs in which only the layers are trained whose shape depends on the classes.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "decay_at": "lr_milestones",
        "decay_by": "lr_gamma",
        "test_every": "eval_every",
    }

    epochs: Epochs
    batch_size: BatchSize
    lr: LearningRate
    momentum: Momentum
    weight_decay: WeightDecay
    lr_milestones: Annotated[tuple[OpenFraction, ...], Field(strict=False), AfterValidator(no_duplicates)]
    lr_gamma: OpenFraction
    eval_every: Epochs = 1
    optimizer: OptimizerName = _optional("sgd")
    schedule: Schedule = _optional("multistep")
    warmup_epochs: WarmupEpochs = _optional(0)
    label_smoothing: LabelSmoothing = _optional(0.0)
    ema: OpenFraction | None = _optional(None)
    clip_grad: GradNorm | None = _optional(None)
    class_balance: ClassBalance | None = _optional(None)
    val_share: OpenFraction | None = _optional(None)
    early_stop: Epochs | None = _optional(None)
    freeze_backbone: Epochs | None = _optional(None)

    @model_validator(mode="after")
    def _check(self) -> Training:
        if problem := self.conflict():
            raise ValueError(problem)
        return self

    def conflict(self) -> str | None:
        """Return why the settings do not go together; None if they do."""
        if self.early_stop is not None and self.val_share is None:
            return "early_stop: needs val_share, the part of the training images that it is measured on"
        if self.warmup_epochs >= self.epochs:
            return f"warmup_epochs: {self.warmup_epochs} must be less than epochs, {self.epochs}"
        return None

    @property
    def changes_labels(self) -> str | None:
        """The setting, if any, that changes the cross-entropy with the labels of x."""
        if self.label_smoothing > 0:
            return "label_smoothing"
        return "class_balance: weights" if self.class_balance == "weights" else None


class TrainingChanges(Settings):
    """Settings of `Training` that replace those of the recipe; null keeps the recipe's."""

    momentum: Momentum | None = None
    weight_decay: WeightDecay | None = None
    optimizer: OptimizerName | None = None
    schedule: Schedule | None = None
    warmup_epochs: WarmupEpochs | None = None
    label_smoothing: LabelSmoothing | None = None
    ema: OpenFraction | None = None
    clip_grad: GradNorm | None = None
    class_balance: ClassBalance | None = None
    val_share: OpenFraction | None = None
    early_stop: Epochs | None = None
    freeze_backbone: Epochs | None = None

    def apply(self, recipe: Training, model_lr: float | None) -> Training:
        """Return the recipe's training with these changes.

        `model_lr` is the model's learning rate for SGD. A change to AdamW has torch's learning rate and weight decay.
        """
        changes: dict[str, Any] = self.model_dump(exclude_none=True)
        defaults: dict[str, Any] = {}
        if changes.get("optimizer", recipe.optimizer) == "sgd":
            defaults = {} if model_lr is None else {"lr": model_lr}
        elif recipe.optimizer == "sgd":
            defaults = {"lr": ADAMW_LR, "weight_decay": ADAMW_WEIGHT_DECAY}
        return recipe.model_copy(update=defaults | changes)


class TeacherTrainingChanges(TrainingChanges):
    """Changes of the teacher's training."""

    lr: LearningRate | None = None
    batch_size: BatchSize | None = None
