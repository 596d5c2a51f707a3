"""The base of a paper's tables and figures: the students that they print, and the inputs of their DVC stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, Field

from kdflow import config
from kdflow.config import BaseViewName, NameChecks, Recipes, Settings

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
