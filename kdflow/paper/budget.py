"""The budget of a paper's runs: params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from kdflow.config import (
    Compute,
    Epochs,
    Fraction,
    LogitSource,
    PathName,
    Precision,
    Seeds,
    Settings,
    TeacherWeights,
)

EpochScale = Annotated[float, Field(gt=0, le=100)]


class PaperBudget(Settings):
    """The budget of the paper's runs, and the files that they start from. Every key is required.

    Every number of epochs is multiplied by `epoch_scale`; `train_share` is the fraction of each dataset that is used.
    Students are evaluated after every `eval_every` epochs (None: the dataset's) and after the last.
    `teacher_weights` maps the name of a teacher's stage to a file with its weights; such a teacher is not trained.
    """

    seeds: Seeds
    epoch_scale: EpochScale
    teacher_epoch_scale: EpochScale
    train_share: Fraction
    eval_every: Epochs | None
    data_folders: dict[str, PathName | None]
    teacher_weights: dict[str, TeacherWeights | None]
    teacher_logits: LogitSource
    precision: Precision
    compute: Compute

    renamed_keys: ClassVar[Mapping[str, str]] = {"logits": "teacher_logits"}


# Two cells are one if their settings at this budget are the same.
FULL_BUDGET = PaperBudget(
    seeds=(0,),
    epoch_scale=1.0,
    teacher_epoch_scale=1.0,
    train_share=1.0,
    eval_every=None,
    data_folders={},
    teacher_weights={},
    teacher_logits="online",
    precision=Precision(),
    compute=Compute(
        device="auto", threads=1, max_parallel_runs=None, replay_gb=1.0, loader_workers=None, processes_per_run=1
    ),
)
