"""Settings of a paper's figures in tables.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from kdflow import config
from kdflow.config import BaseViewName, Epochs, NameChecks, Percent, Recipes, Settings
from kdflow.paper.item import CellSpec, DatasetPair, Item, SeedCount, UniqueNames


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
