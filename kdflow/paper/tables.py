"""Settings of a paper's tables in tables.yaml: accuracies, costs, and claims that compare accuracies.

A kind of table or figure is a subclass of `Item` and the module of kdflow.report that has the name of its `kind`. To
add one, write both and list the class in `KINDS` of kdflow/paper/paper.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from kdflow import config
from kdflow.config import BaseViewName, Epochs, Pair, Recipes, Settings
from kdflow.paper.item import CellSpec, DatasetPair, Item, Metric, Numbers, PaperValue, SeedCount, UniqueNames


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

    recipe_file: ClassVar[str] = "models"

    def dataset_pairs(self) -> Sequence[DatasetPair]:
        """Return the rows."""
        return [DatasetPair(self.dataset, pair) for pair in self.pairs]

    def counted_models(self, recipes: Recipes) -> Sequence[tuple[str, str]]:
        """Return the teachers and students of all pairs."""
        pairs = [recipes.pairs[pair] for pair in self.pairs]
        return [(self.dataset, model) for pair in pairs for model in (pair.teacher, pair.student)]


class Term(Settings):
    """A student of a comparison. `epochs` None: the dataset's default; `base_view` None: the dataset's."""

    method: str
    epochs: Epochs | None = None
    base_view: BaseViewName | None = None


Terms = Annotated[tuple[Term, ...], Field(strict=False, min_length=1)]


class Comparison(Settings):
    """The test accuracies of `plus` minus those of `minus`, seed by seed, in percentage points."""

    label: str
    plus: Terms
    minus: Terms

    @model_validator(mode="after")
    def _check_terms(self) -> Comparison:
        if len(self.plus) != len(self.minus):
            raise ValueError(f"plus has {len(self.plus)} students, minus {len(self.minus)}; both need the same number")
        return self


class Claim(Settings):
    """A claim of the paper that holds if all its comparisons are positive; `comment` is a remark on the result."""

    claim: str
    source: str
    comparisons: Annotated[tuple[Comparison, ...], Field(strict=False, min_length=1)]
    comment: str = ""


class ClaimTable(Item):
    """A table of claims: each comparison with its mean and confidence interval over seeds, and each claim's verdict."""

    kind: Literal["claim_table"]
    dataset: str
    pair: str
    seeds: SeedCount = 3
    claims: Annotated[tuple[Claim, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _check_labels(self) -> ClaimTable:
        config.no_duplicates(tuple(comparison.label for claim in self.claims for comparison in claim.comparisons))
        return self

    def dataset_pairs(self) -> Sequence[DatasetPair]:
        """Return the only pair."""
        return [DatasetPair(self.dataset, self.pair)]

    def cells(self) -> Iterator[CellSpec]:
        """Yield the students of all comparisons."""
        for claim in self.claims:
            for comparison in claim.comparisons:
                yield from map(self.cell, (*comparison.plus, *comparison.minus))

    def cell(self, term: Term) -> CellSpec:
        """Return the student of a term."""
        return CellSpec(self.dataset, self.pair, term.method, term.epochs, term.base_view, self.seeds)


def paper_accuracy(pair: Pair, dataset: str, role: Literal["teacher", "student"], metric: Metric) -> float | None:
    """Return the paper's accuracy in percent of a pair's teacher, or of its student trained without one."""
    accuracy = pair.datasets[dataset]
    value = None if accuracy is None else getattr(accuracy, f"{role}_{metric}")
    assert value is None or isinstance(value, float)
    return value
