"""Settings of tables and figures (tables.yaml) and of the paper's budget (params.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from kdflow import config
from kdflow.config import (
    BaseViewName,
    Compute,
    Pair,
    Percent,
    Positive,
    Precision,
    Seeds,
    Settings,
    TeacherWeights,
)

GOLDEN = Path("tests/golden")

Listed = Annotated[tuple[str, ...], Field(strict=False, min_length=1), AfterValidator(config.no_duplicates)]

Notes = Annotated[tuple[str, ...], Field(strict=False)]

Numbers = Annotated[tuple[float | None, ...], Field(strict=False)]

Metric = Literal["top1", "top5"]


class PaperValues(Settings):
    """What the paper prints in a row, a figure per pair, in percent; null where it prints none."""

    top1: Numbers
    top5: Numbers | None = None
    std: Numbers | None = None


class AccuracyRow(Settings):
    """A row: a method at a number of epochs (null: the dataset's own); without a method, the teachers."""

    label: str
    method: str | None = None
    epochs: Positive | None = None
    paper: PaperValues | None = None
    quoted: str | None = None


class AccuracyTable(Settings):
    """A table of accuracies: rows by pairs."""

    kind: Literal["results"]
    caption: str
    dataset: str
    pairs: Listed
    seeds: Positive = 3
    metrics: Annotated[tuple[Metric, ...], Field(strict=False, min_length=1)] = ("top1",)
    rows: Annotated[tuple[AccuracyRow, ...], Field(strict=False, min_length=1)]
    notes: Notes = ()

    @model_validator(mode="after")
    def _is_a_grid(self) -> AccuracyTable:
        labels = [row.label for row in self.rows]
        config.no_duplicates(tuple(labels))
        for row in self.rows:
            for name, values in (row.paper or PaperValues(top1=(None,) * len(self.pairs))).model_dump().items():
                if values is not None and len(values) != len(self.pairs):
                    raise ValueError(f"rows: {row.label}: paper.{name}: {len(values)} of {len(self.pairs)} pairs")
        return self


class CostTable(Settings):
    """A table of parameters (1e6) and FLOPs (1e9); `paper` has a figure per pair."""

    kind: Literal["costs"]
    caption: str
    dataset: str
    pairs: Listed
    paper: dict[str, Numbers] = Field(default_factory=dict)
    notes: Notes = ()


class Optimum(Settings):
    """The lowest point of a curve in the paper's figure, in percent."""

    base_view: BaseViewName
    method: str
    epochs: Positive
    error: Percent


class EpochsFigure(Settings):
    """A figure of the test error against the total number of epochs: a panel per pair and base view."""

    kind: Literal["epochs"]
    caption: str
    dataset: str
    pairs: Listed
    methods: Listed
    base_views: Annotated[
        tuple[BaseViewName, ...], Field(strict=False, min_length=1), AfterValidator(config.no_duplicates)
    ]
    epochs: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1), AfterValidator(config.no_duplicates)]
    paper: Annotated[tuple[Optimum, ...], Field(strict=False)] = ()
    seeds: Positive = 3
    notes: Notes = ()


class Curve(Settings):
    """A pair on a dataset."""

    dataset: str
    pair: str


class PickRatioFigure(Settings):
    """A figure of r (Eq. 4) along training."""

    kind: Literal["pick_ratio"]
    caption: str
    method: str
    curves: Annotated[tuple[Curve, ...], Field(strict=False, min_length=1)]
    seeds: Positive = 3
    notes: Notes = ()


class DisagreementFigure(Settings):
    """A figure of strong views whose label the pair's teacher sees otherwise; `paper`: on how many, in percent."""

    kind: Literal["disagreement"]
    caption: str
    dataset: str
    pair: str
    view: str
    paper: Percent | None = None
    notes: Notes = ()


Item = AccuracyTable | CostTable | EpochsFigure | PickRatioFigure | DisagreementFigure

KINDS: dict[str, Any] = {
    "results": AccuracyTable,
    "costs": CostTable,
    "epochs": EpochsFigure,
    "pick_ratio": PickRatioFigure,
    "disagreement": DisagreementFigure,
}


class PaperBudget(Settings):
    """What the paper's runs may cost, and where they get what they need. Every key must be there.

    Every number of epochs is multiplied by `epoch_scale`, of every dataset the share `train_share` is used.
    `teacher_weights` has files for teachers that are not to be trained here, by the names of their stages.
    """

    seeds: Seeds
    epoch_scale: Annotated[float, Field(gt=0)]
    teacher_epoch_scale: Annotated[float, Field(gt=0)]
    train_share: config.Fraction
    data_folders: dict[str, str | None]
    teacher_weights: dict[str, TeacherWeights | None]
    teacher_logits: Literal["online", "replay", "replay-float32"]
    precision: Precision
    compute: Compute


def paper_accuracy(pair: Pair, dataset: str, role: Literal["teacher", "student"], metric: Metric) -> float | None:
    """What the paper prints for a pair's teacher, or for its student without one, in percent."""
    said = pair.datasets[dataset]
    value = None if said is None else getattr(said, f"{role}_{metric}")
    assert value is None or isinstance(value, float)
    return value
