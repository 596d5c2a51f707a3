"""Settings of an experiment: params.yaml together with the recipes that it names."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from kdflow.config.base import Percent, Positive, Seeds, Settings, Sha256, no_duplicates, unknown_name
from kdflow.config.dataset import BaseViewName, Dataset, PreparedDataset, Training, UserFolder, UserFolderRecipe
from kdflow.config.method import Method, Model, Pair
from kdflow.config.run import Architecture, LogitSource, Precision, RunSettings
from kdflow.core.errors import UserError


class TeacherWeights(Settings):
    """Weights from a file instead of a teacher trained here: all three or none."""

    file: str | None
    sha256: Sha256 | None
    top1: Percent | None

    @model_validator(mode="after")
    def _all_or_none(self) -> TeacherWeights:
        missing = [key for key in ("file", "sha256", "top1") if getattr(self, key) is None]
        if 0 < len(missing) < 3:
            raise ValueError(f"file, sha256 and top1 go together, {' and '.join(missing)} not given")
        return self


class Compute(Settings):
    """Where a run is computed: recorded, and no reason to compute it again. `replay_gb` is at most on disk."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]
    threads: Positive
    max_parallel_runs: Positive | None
    processes_per_run: Positive
    replay_gb: Annotated[float, Field(gt=0)]
    loader_workers: Annotated[int, Field(ge=0)] | None

    @property
    def resolved_workers(self) -> int:
        """How many processes read the image files of one run; 0: the run itself does."""
        return min(8, os.cpu_count() or 1) if self.loader_workers is None else self.loader_workers


class Params(Settings):
    """params.yaml: the experiment in hand. Every key must be there, null means the dataset's or model's own."""

    dataset: Annotated[
        Annotated[str, Tag("<name>")] | Annotated[UserFolder, Tag("<folder>")],
        Discriminator(lambda value: "<folder>" if isinstance(value, dict | UserFolder) else "<name>"),
    ]
    data_folder: str | None
    train_images: Positive | None
    base_view: BaseViewName | None
    teacher: str
    teacher_epochs: Positive | None
    teacher_weights: TeacherWeights
    teacher_logits: LogitSource
    student: str
    methods: Annotated[tuple[str, ...], Field(strict=False, min_length=1), AfterValidator(no_duplicates)]
    seeds: Seeds
    epochs: Positive | None
    batch_size: Positive | None
    lr: Annotated[float, Field(gt=0)] | None
    precision: Precision
    compute: Compute

    @property
    def dataset_name(self) -> str:
        """What the dataset is called in records and tables."""
        return self.dataset if isinstance(self.dataset, str) else self.dataset.name


class Recipes(Settings):
    """All of recipes/."""

    datasets: dict[str, Dataset]
    models: dict[str, Model]
    methods: dict[str, Method]
    pairs: dict[str, Pair]
    user_folder: UserFolderRecipe


class Experiment(Recipes):
    """The experiment in hand together with the recipes that it names."""

    params: Params
    prepared: PreparedDataset | None = None

    @property
    def dataset(self) -> Dataset:
        """The dataset in hand.

        Raises:
            UserError: it is a folder that was not prepared as params.yaml now says.
        """
        source = self.params.dataset
        if isinstance(source, str):
            return self.datasets[source]
        if self.prepared is None:
            raise UserError(f"dataset: {source.folder} is not prepared yet; `dvc repro prepare` does it")
        return self.prepared.dataset

    @property
    def train_images(self) -> int:
        """How many training images are used."""
        return self.params.train_images or self.dataset.data.train_images

    def student_run(self, method: str, seed: int) -> RunSettings:
        """The run that distils the student by `method` (a key of recipes/methods.yaml) from `seed`."""
        if method not in self.methods:
            raise unknown_name("method", method, self.methods)
        params = self.params
        own = self.dataset.training
        assert own is not None
        return self._run(
            "student",
            params.student,
            self.methods[method],
            seed,
            own.model_copy(
                update={
                    "epochs": params.epochs or own.epochs,
                    "batch_size": params.batch_size or own.batch_size,
                    "lr": params.lr or self.models[params.student].lr or own.lr,
                }
            ),
        )

    def teacher_run(self) -> RunSettings:
        """The run that trains the teacher: cross-entropy on the labels, seed 0."""
        params = self.params
        own = self.dataset.training
        assert own is not None
        lr = self.models[params.teacher].lr or own.lr
        training = own.model_copy(update={"epochs": params.teacher_epochs or own.epochs, "lr": lr})
        return self._run("teacher", params.teacher, Method(ce=1.0, kl=0.0), 0, training)

    def _run(
        self,
        role: Literal["teacher", "student"],
        architecture: str,
        method: Method,
        seed: int,
        training: Training,
    ) -> RunSettings:
        data, views = self.dataset.data, self.dataset.base_view
        assert views is not None
        if role == "student":
            views = views.reduced_to(self.params.base_view)
        teacher, precision = None, self.params.precision
        if method.needs_teacher:
            teacher = Architecture(name=self.params.teacher, model=self.models[self.params.teacher])
        else:
            precision = precision.model_copy(update={"fold_teacher": False, "teacher": "float32"})
        return RunSettings(
            dataset=self.params.dataset_name,
            train_images=self.train_images,
            classes=data.classes,
            image_size=data.image_size,
            base_view=views,
            role=role,
            architecture=architecture,
            model=self.models[architecture],
            teacher=teacher,
            method=method,
            training=training,
            seed=seed,
            teacher_logits=self.params.teacher_logits if teacher else "online",
            precision=precision,
        )
