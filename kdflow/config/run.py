"""Settings of one run: everything that decides its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Literal

from pydantic import Field, model_validator

from kdflow.config import user_code
from kdflow.config.base import Settings, Sha256, Std, Triple
from kdflow.config.dataset import BaseView
from kdflow.config.initial import InitialWeights
from kdflow.config.method import Method, Model
from kdflow.config.training import Training
from kdflow.core.errors import UserError


class Precision(Settings):
    """Options that are faster and change the last digits, or more. They are part of a run's settings and its record.

    `teacher_runtime` is the library that runs the teacher; onnxruntime is for the CPU. `step` makes forward and
    backward pass one graph; a CUDA graph has the optimiser too.
    """

    fold_teacher: bool = False
    teacher: Literal["float32", "bfloat16"] = "float32"
    student: Literal["float32", "bfloat16"] = "float32"
    tf32: bool = False
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    teacher_runtime: Literal["torch", "onnxruntime"] = Field(default="torch", exclude_if=lambda value: value == "torch")
    step: Literal["eager", "compile", "cuda_graph"] = Field(default="eager", exclude_if=lambda value: value == "eager")

    @model_validator(mode="after")
    def _check_combinations(self) -> Precision:
        if self.teacher_runtime == "onnxruntime" and self.teacher != "float32":
            raise ValueError("teacher_runtime: onnxruntime computes in float32; set precision.teacher: float32")
        if self.step != "eager" and (self.compile != "none" or self.teacher_runtime != "torch"):
            raise ValueError(f"step: {self.step} needs precision.compile: none and precision.teacher_runtime: torch")
        return self


LogitSource = Literal[
    "online", "views", "views-float32", "replay", "replay-float32", "views+replay", "views+replay-float32"
]


class Architecture(Settings):
    """A model and its name in recipes/models.yaml.

    `mean` and `std` are those of a teacher that was trained with others than the student's.
    """

    name: str
    model: Model
    mean: Triple | None = Field(default=None, exclude_if=lambda value: value is None)
    std: Std | None = Field(default=None, exclude_if=lambda value: value is None)


class RunSettings(Settings):
    """Everything that determines the numbers of a run, except data, teacher weights and kdflow's code; nothing else.

    `user_code` has the SHA-256 of the source of each part that is a user's code, by its import path.
    """

    dataset: str
    train_images: int
    classes: int
    image_size: int
    base_view: BaseView
    role: Literal["teacher", "student"]
    architecture: str
    model: Model
    teacher: Architecture | None
    method: Method
    training: Training
    seed: int
    teacher_logits: LogitSource
    precision: Precision = Precision()
    initial: InitialWeights | None = Field(default=None, exclude_if=lambda value: value is None)
    user_code: dict[str, Sha256] = Field(default_factory=dict, exclude_if=lambda value: not value)

    def with_user_code(self) -> RunSettings:
        """Return these settings with the hashes of the user's code that they name, as it is now.

        Raises:
            UserError: its source is not there any more.
        """
        teacher = {} if self.teacher is None else self.teacher.model.parts
        parts = [*self.model.parts.values(), *teacher.values(), *self.method.parts.values()]
        return self.model_copy(update={"user_code": user_code.hashes(name for _, name in parts)})

    def check_user_code(self, names: Collection[str] | None = None) -> None:
        """Check that the user's code is still that of these settings; of the parts `names` only, if they are given.

        Raises:
            UserError: its source has changed or is not there any more.
        """
        now = user_code.hashes(name for name in self.user_code if names is None or name in names)
        changed = ", ".join(name for name in now if now[name] != self.user_code[name])
        if changed:
            raise UserError(f"{changed}: the code has changed since this run was started; start it again")

    @property
    def held_out_images(self) -> int:
        """The number of training images that are held out for measuring."""
        share = self.training.val_share
        return 0 if share is None else min(max(1, round(share * self.train_images)), self.train_images - 1)

    @property
    def fitted_images(self) -> int:
        """The number of images in an epoch."""
        return self.train_images - self.held_out_images

    @property
    def logit_source(self) -> tuple[str, str]:
        """The source of the teacher logits (online, views, replay or views+replay), and the dtype of stored ones."""
        kind, _, dtype = self.teacher_logits.partition("-")
        return kind, dtype or "float16"

    @property
    def reads_views(self) -> bool:
        """Whether the logits of x come from a store of all views, which has no features."""
        return self.teacher is not None and "views" in self.logit_source[0] and not self.method.needs_features

    @property
    def sha256(self) -> str:
        """SHA-256 of the settings as canonical JSON, in hex."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
