"""Settings of a paper's tables and figures: tables.yaml.

A kind of table or figure is a subclass of `Item` and the module of kdflow.report that has the name of its `kind`. To
add one, write both and list the class in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from kdflow import config
from kdflow.config import BaseViewName, Epochs, NameChecks, Pair, Percent, Recipes, Settings

GOLDEN = Path("tests/golden")

UniqueNames = Annotated[tuple[str, ...], Field(strict=False, min_length=1), AfterValidator(config.no_duplicates)]

Notes = Annotated[tuple[str, ...], Field(strict=False)]

Numbers = Annotated[tuple[Annotated[float, Field(ge=0, le=1e6)] | None, ...], Field(strict=False)]

SeedCount = Annotated[int, Field(gt=0, le=1000)]

Metric = Literal["top1", "top5"]


class DatasetPair(NamedTuple):
    """A pair of recipes/pairs.yaml on a dataset."""

    dataset: str
    pair: str


class CellSpec(NamedTuple):
    """A student that an item prints. `epochs` None: the dataset's default; `base_view` None: the dataset's."""

    dataset: str
    pair: str
    method: str
    epochs: int | None = None
    base_view: BaseViewName | None = None
    seeds: int = 1


class PaperValue(NamedTuple):
    """The accuracy that the paper prints for a cell, with its standard deviation, in percent."""

    cell: CellSpec
    row: str
    metric: Metric
    value: float
    std: float | None
    quoted_from: str | None


class Item(Settings):
    """A table or figure of the paper.

    The class attributes and `image_datasets` are the inputs and outputs of its DVC stage beside cells and teachers.
    """

    kind: str
    caption: str
    notes: Notes = ()

    code_deps: ClassVar[tuple[str, ...]] = ("kdflow/report",)
    recipe_file: ClassVar[str] = "pairs"
    budget_keys: ClassVar[tuple[str, ...]] = ()
    has_metrics: ClassVar[bool] = False
    plot: ClassVar[dict[str, str] | None] = None

    def dataset_pairs(self) -> Sequence[DatasetPair]:
        """Return every pair that the item prints, with its dataset."""
        raise NotImplementedError

    def cells(self) -> Iterator[CellSpec]:
        """Yield the students that the item prints; a student that it prints twice comes twice."""
        yield from ()

    def teachers(self) -> Sequence[DatasetPair]:
        """Return the pairs whose teachers the item needs beside its cells."""
        return ()

    def image_datasets(self) -> Sequence[str]:
        """Return the datasets whose images the item reads."""
        return ()

    def counted_models(self, recipes: Recipes) -> Sequence[tuple[str, str]]:  # noqa: ARG002
        """Return dataset and name of each model whose parameters and FLOPs the item prints."""
        return ()

    def paper_values(self, recipes: Recipes) -> Iterator[PaperValue]:  # noqa: ARG002
        """Yield the accuracies that the paper prints for the item's cells."""
        yield from ()

    def name_checks(self, file: Path, key: str, recipes: Recipes) -> NameChecks:
        """Return the names in the item that must be known, for `config.check_names`."""
        checks: NameChecks = []
        for field, names, known in (
            ("method", [cell.method for cell in self.cells()], recipes.methods),
            ("dataset", [dataset for dataset, _ in self.dataset_pairs()], recipes.datasets),
            ("pair", [pair for _, pair in self.dataset_pairs()], recipes.pairs),
        ):
            checks += [(file, f"{key}: {field}", name, known) for name in dict.fromkeys(names)]
        return checks


class PaperValues(Settings):
    """The paper's values in a row in percent, one for each pair; null where it prints none."""

    top1: Numbers
    top5: Numbers | None = None
    std: Numbers | None = None


class AccuracyRow(Settings):
    """A row: a method at a number of epochs (null: the dataset's default). A row without a method has the teachers.

    `quoted_from` is set where the paper took its values from another paper.
    """

    label: str
    method: str | None = None
    epochs: Epochs | None = None
    paper: PaperValues | None = None
    quoted_from: str | None = None

    renamed_keys: ClassVar[Mapping[str, str]] = {"quoted": "quoted_from"}


class AccuracyTable(Item):
    """A table of test accuracies: one row for each method, one column for each pair."""

    kind: Literal["accuracy_table"]
    renamed_kind: ClassVar[str | None] = "results"
    dataset: str
    pairs: UniqueNames
    seeds: SeedCount = 3
    metrics: Annotated[tuple[Metric, ...], Field(strict=False, min_length=1)] = ("top1",)
    rows: Annotated[tuple[AccuracyRow, ...], Field(strict=False, min_length=1)]

    has_metrics: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check_rows(self) -> AccuracyTable:
        labels = [row.label for row in self.rows]
        config.no_duplicates(tuple(labels))
        for row in self.rows:
            for name, values in (row.paper or PaperValues(top1=(None,) * len(self.pairs))).model_dump().items():
                if values is not None and len(values) != len(self.pairs):
                    raise ValueError(f"rows: {row.label}: paper.{name}: {len(values)} of {len(self.pairs)} pairs")
        return self

    def dataset_pairs(self) -> Sequence[DatasetPair]:
        """Return the columns."""
        return [DatasetPair(self.dataset, pair) for pair in self.pairs]

    def teachers(self) -> Sequence[DatasetPair]:
        """Return the columns: each shows its teacher."""
        return self.dataset_pairs()

    def cells(self) -> Iterator[CellSpec]:
        """Yield the students, row by row."""
        for row in self.rows:
            if row.method is not None:
                for pair in self.pairs:
                    yield self.cell(row.method, pair, row.epochs)

    def cell(self, method: str, pair: str, epochs: int | None = None) -> CellSpec:
        """Return the student that the table prints for a method and pair."""
        return CellSpec(self.dataset, pair, method, epochs, seeds=self.seeds)

    def paper_value(self, row: AccuracyRow, pair: Pair, i: int, metric: Metric) -> tuple[float | None, float | None]:
        """Return the paper's accuracy and standard deviation for a row and its `i`-th pair, in percent."""
        if row.method is None:
            return paper_accuracy(pair, self.dataset, "teacher", metric), None
        if row.paper is None:
            return paper_accuracy(pair, self.dataset, "student", metric) if row.method == "ce" else None, None
        values, std = getattr(row.paper, metric), row.paper.std if metric == "top1" else None
        return None if values is None else values[i], None if std is None else std[i]

    def paper_values(self, recipes: Recipes) -> Iterator[PaperValue]:
        """Yield the paper's accuracies of all students."""
        for row in self.rows:
            for i, pair in enumerate(self.pairs if row.method is not None else ()):
                for metric in self.metrics:
                    value, std = self.paper_value(row, recipes.pairs[pair], i, metric)
                    if row.method is not None and value is not None:
                        cell = self.cell(row.method, pair, row.epochs)
                        yield PaperValue(cell, row.label, metric, value, std, row.quoted_from)


class CostTable(Item):
    """A table of parameters (1e6) and FLOPs (1e9); `paper` has one value for each pair."""

    kind: Literal["cost_table"]
    renamed_kind: ClassVar[str | None] = "costs"
    dataset: str
    pairs: UniqueNames
    paper: dict[str, Numbers] = Field(default_factory=dict)

    code_deps: ClassVar[tuple[str, ...]] = ("kdflow/models", "kdflow/report")
    recipe_file: ClassVar[str] = "models"

    def dataset_pairs(self) -> Sequence[DatasetPair]:
        """Return the rows."""
        return [DatasetPair(self.dataset, pair) for pair in self.pairs]

    def counted_models(self, recipes: Recipes) -> Sequence[tuple[str, str]]:
        """Return the teachers and students of all pairs."""
        pairs = [recipes.pairs[pair] for pair in self.pairs]
        return [(self.dataset, model) for pair in pairs for model in (pair.teacher, pair.student)]


class Optimum(Settings):
    """The lowest point of a curve in the paper's figure, in percent."""

    base_view: BaseViewName
    method: str
    epochs: Epochs
    error: Percent


class EpochsFigure(Item):
    """A figure of the test error against the total number of epochs: one panel for each pair and base view."""

    kind: Literal["epochs_figure"]
    renamed_kind: ClassVar[str | None] = "epochs"
    dataset: str
    pairs: UniqueNames
    methods: UniqueNames
    base_views: Annotated[
        tuple[BaseViewName, ...], Field(strict=False, min_length=1), AfterValidator(config.no_duplicates)
    ]
    epochs: Annotated[tuple[Epochs, ...], Field(strict=False, min_length=1), AfterValidator(config.no_duplicates)]
    paper: Annotated[tuple[Optimum, ...], Field(strict=False)] = ()
    seeds: SeedCount = 3

    plot: ClassVar[dict[str, str] | None] = {"x": "epochs", "y": "error", "template": "scatter"}

    def dataset_pairs(self) -> Sequence[DatasetPair]:
        """Return the rows of panels."""
        return [DatasetPair(self.dataset, pair) for pair in self.pairs]

    def cells(self) -> Iterator[CellSpec]:
        """Yield the students of all points, panel by panel."""
        for pair in self.pairs:
            for view in self.base_views:
                for method in self.methods:
                    for epochs in self.epochs:
                        yield CellSpec(self.dataset, pair, method, epochs, view, self.seeds)

    def name_checks(self, file: Path, key: str, recipes: Recipes) -> NameChecks:
        """Return the names of the curves and of the paper's optima."""
        optima = [(file, f"{key}: method", point.method, recipes.methods) for point in self.paper]
        return [*super().name_checks(file, key, recipes), *optima]


class Curve(Settings):
    """A pair on a dataset."""

    dataset: str
    pair: str


class PickRatioFigure(Item):
    """A figure of the pick ratio r (Eq. 4) during training."""

    kind: Literal["pick_ratio_figure"]
    renamed_kind: ClassVar[str | None] = "pick_ratio"
    method: str
    curves: Annotated[tuple[Curve, ...], Field(strict=False, min_length=1)]
    seeds: SeedCount = 3

    plot: ClassVar[dict[str, str] | None] = {"x": "training_fraction", "y": "pick_ratio", "template": "scatter"}

    def dataset_pairs(self) -> Sequence[DatasetPair]:
        """Return the curves."""
        return [DatasetPair(curve.dataset, curve.pair) for curve in self.curves]

    def cells(self) -> Iterator[CellSpec]:
        """Yield the student of each curve."""
        for curve in self.curves:
            yield CellSpec(curve.dataset, curve.pair, self.method, seeds=self.seeds)


class DisagreementFigure(Item):
    """A figure of strong views for which the teacher predicts another class than the mixed label.

    `paper` is the percentage of such views in the paper.
    """

    kind: Literal["disagreement_figure"]
    renamed_kind: ClassVar[str | None] = "disagreement"
    renamed_keys: ClassVar[Mapping[str, str]] = {"mix": "view"}
    dataset: str
    pair: str
    view: str
    paper: Percent | None = None

    budget_keys: ClassVar[tuple[str, ...]] = ("train_share",)

    def dataset_pairs(self) -> Sequence[DatasetPair]:
        """Return the only pair."""
        return [DatasetPair(self.dataset, self.pair)]

    def teachers(self) -> Sequence[DatasetPair]:
        """Return the only pair."""
        return self.dataset_pairs()

    def image_datasets(self) -> Sequence[str]:
        """Return the dataset that the views are made of."""
        return (self.dataset,)

    def name_checks(self, file: Path, key: str, recipes: Recipes) -> NameChecks:
        """Return the names of dataset, pair and view."""
        view = (file, f"{key}: view", self.view, config.choices("views"))
        return [*super().name_checks(file, key, recipes), view]


KINDS: dict[str, type[Item]] = {
    "accuracy_table": AccuracyTable,
    "cost_table": CostTable,
    "epochs_figure": EpochsFigure,
    "pick_ratio_figure": PickRatioFigure,
    "disagreement_figure": DisagreementFigure,
}


def paper_accuracy(pair: Pair, dataset: str, role: Literal["teacher", "student"], metric: Metric) -> float | None:
    """Return the paper's accuracy in percent of a pair's teacher, or of its student trained without one."""
    accuracy = pair.datasets[dataset]
    value = None if accuracy is None else getattr(accuracy, f"{role}_{metric}")
    assert value is None or isinstance(value, float)
    return value
