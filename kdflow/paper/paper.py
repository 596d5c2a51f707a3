"""A paper: its tables and figures, and the cells and teachers that they need."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdflow import config
from kdflow.config import (
    BaseViewName,
    Compute,
    Experiment,
    NameChecks,
    Params,
    Precision,
    Recipes,
    Settings,
    TeacherWeights,
)
from kdflow.core.errors import UserError
from kdflow.paper.tables import (
    KINDS,
    AccuracyTable,
    DisagreementFigure,
    EpochsFigure,
    Item,
    PaperBudget,
    PickRatioFigure,
)


class Teacher(Settings):
    """A teacher on a dataset."""

    dataset: str
    architecture: str


class Cell(Settings):
    """A student: `epochs` of a full run, `seeds` how many a full budget has. No teacher where none is asked."""

    dataset: str
    teacher: str | None
    student: str
    method: str
    epochs: int
    base_view: BaseViewName | None
    seeds: int


@dataclass(frozen=True)
class Paper:
    """A folder with tables.yaml and params.yaml, and the recipes that they name."""

    root: Path
    folder: Path
    recipes: Recipes
    parts: dict[str, Item]
    spending: PaperBudget

    @property
    def data(self) -> Path:
        """Where the stages write, below the root."""
        return Path("data") / self.folder.name

    def full(self, dataset: str) -> int:
        """The dataset's own number of epochs."""
        training = self.recipes.datasets[dataset].training
        assert training is not None, "load() refuses a dataset without"
        return training.epochs

    def cell(
        self, dataset: str, pair: str, method: str, epochs: int | None = None, base_view: BaseViewName | None = None
    ) -> str:
        """The name of the cell of these settings."""
        wanted = self._cell(dataset, pair, method, epochs, base_view, 1)
        return self._names[self._key(wanted)]

    def _cell(
        self, dataset: str, pair: str, method: str, epochs: int | None, base_view: BaseViewName | None, seeds: int
    ) -> Cell:
        names, views = self.recipes.pairs[pair], self.recipes.datasets[dataset].base_view
        assert views is not None
        return Cell(
            dataset=dataset,
            teacher=names.teacher if self.recipes.methods[method].needs_teacher else None,
            student=names.student,
            method=method,
            epochs=epochs or self.full(dataset),
            base_view=None if views.reduced_to(base_view) == views else base_view,
            seeds=seeds,
        )

    def _key(self, cell: Cell) -> str:
        return self._experiment(cell, FULL_BUDGET).student_run(cell.method, 0).sha256

    def wanted(self, part: Item) -> Iterator[Cell]:
        """The cells of a part, as often as it prints them."""
        if isinstance(part, AccuracyTable):
            for row in part.rows:
                if row.method is not None:
                    for pair in part.pairs:
                        yield self._cell(part.dataset, pair, row.method, row.epochs, None, part.seeds)
        elif isinstance(part, EpochsFigure):
            for pair in part.pairs:
                for view in part.base_views:
                    for method in part.methods:
                        for epochs in part.epochs:
                            yield self._cell(part.dataset, pair, method, epochs, view, part.seeds)
        elif isinstance(part, PickRatioFigure):
            for curve in part.curves:
                yield self._cell(curve.dataset, curve.pair, part.method, None, None, part.seeds)

    @cached_property
    def _named(self) -> tuple[dict[str, Cell], dict[str, str], dict[str, list[str]]]:
        """Cells by name, names by settings, and the parts that print each."""
        cells: dict[str, Cell] = {}
        names: dict[str, str] = {}
        users: dict[str, list[str]] = {}
        for name, part in self.parts.items():
            for cell in self.wanted(part):
                found = names.setdefault(self._key(cell), self._name(cell))
                known = cells.setdefault(found, cell)
                cells[found] = known.model_copy(update={"seeds": max(known.seeds, cell.seeds)})
                if name not in users.setdefault(found, []):
                    users[found].append(name)
        return cells, names, users

    def _name(self, cell: Cell) -> str:
        parts = [cell.dataset, cell.teacher, cell.student, cell.method]
        parts += [f"e{cell.epochs}" if cell.epochs != self.full(cell.dataset) else None]
        parts += [cell.base_view and cell.base_view.replace("+", "_")]
        return "-".join(part for part in parts if part)

    @property
    def cells(self) -> dict[str, Cell]:
        """All cells by name."""
        return self._named[0]

    @property
    def _names(self) -> dict[str, str]:
        return self._named[1]

    @property
    def users(self) -> dict[str, list[str]]:
        """The parts that print each cell."""
        return self._named[2]

    @cached_property
    def teachers(self) -> dict[str, Teacher]:
        """All teachers by name."""
        found = [(part.dataset, part.pair) for part in self.parts.values() if isinstance(part, DisagreementFigure)]
        asked = [(d, self.recipes.pairs[pair].teacher) for d, pair in found]
        asked += [(cell.dataset, cell.teacher) for cell in self.cells.values() if cell.teacher is not None]
        asked += [
            (part.dataset, self.recipes.pairs[pair].teacher)
            for part in self.parts.values()
            if isinstance(part, AccuracyTable)
            for pair in part.pairs
        ]
        return {f"{d}-{a}": Teacher(dataset=d, architecture=a) for d, a in dict.fromkeys(asked)}

    @cached_property
    def datasets(self) -> list[str]:
        """All datasets that are trained on."""
        return list(dict.fromkeys(teacher.dataset for teacher in self.teachers.values()))

    def cell_named(self, name: str) -> Cell:
        """The cell of a name.

        Raises:
            UserError: there is none.
        """
        if name not in self.cells:
            raise config.unknown_name(f"{self.folder}: cell", name, self.cells)
        return self.cells[name]

    def part_named(self, name: str) -> Item:
        """The part of a name.

        Raises:
            UserError: there is none.
        """
        if name not in self.parts:
            raise config.unknown_name(f"{self.folder}: table or figure", name, self.parts)
        return self.parts[name]

    def experiment(self, cell: Cell) -> Experiment:
        """A cell at the budget in hand, as the experiment that its stage runs."""
        return self._experiment(cell, self.spending)

    def _experiment(self, cell: Cell, spending: PaperBudget) -> Experiment:
        full = self.recipes.datasets[cell.dataset]
        assert full.training is not None
        # What counts as a full run of this cell are its own epochs.
        own = full.model_copy(update={"training": full.training.model_copy(update={"epochs": cell.epochs})})
        params = self._params(spending, cell.dataset, cell.teacher or cell.student, cell.student).model_copy(
            update={
                "base_view": cell.base_view,
                "methods": (cell.method,),
                "seeds": spending.seeds[: cell.seeds],
                "epochs": max(1, round(cell.epochs * spending.epoch_scale)),
            }
        )
        recipes = dict(self.recipes) | {"datasets": {**self.recipes.datasets, cell.dataset: own}}
        return Experiment.model_construct(params=params, **recipes)

    def teacher_experiment(self, name: str) -> Experiment:
        """A teacher at the budget in hand, as the experiment that its stage runs.

        Raises:
            UserError: there is no such teacher.
        """
        if name not in self.teachers:
            raise config.unknown_name(f"{self.folder}: teacher", name, self.teachers)
        dataset, architecture = self.teachers[name].dataset, self.teachers[name].architecture
        params = self._params(self.spending, dataset, architecture, architecture)
        return Experiment.model_construct(params=params, **dict(self.recipes))

    def _params(self, spending: PaperBudget, dataset: str, teacher: str, student: str) -> Params:
        images = self.recipes.datasets[dataset].data
        share = max(images.classes, round(images.train_images * spending.train_share))
        weights = spending.teacher_weights.get(f"{dataset}-{teacher}")
        return Params.model_construct(
            dataset=dataset,
            data_folder=spending.data_folders.get(dataset),
            train_images=share if spending.train_share < 1 else None,
            base_view=None,
            teacher=teacher,
            teacher_epochs=max(1, round(self.full(dataset) * spending.teacher_epoch_scale)),
            teacher_weights=weights or TeacherWeights(file=None, sha256=None, top1=None),
            teacher_logits=spending.teacher_logits,
            student=student,
            methods=("ce",),
            seeds=spending.seeds,
            epochs=None,
            batch_size=None,
            lr=None,
            precision=spending.precision,
            compute=spending.compute,
        )


FULL_BUDGET = PaperBudget(
    seeds=(0,),
    epoch_scale=1.0,
    teacher_epoch_scale=1.0,
    train_share=1.0,
    data_folders={},
    teacher_weights={},
    teacher_logits="online",
    precision=Precision(),
    compute=Compute(
        device="auto", threads=1, max_parallel_runs=None, replay_gb=1.0, loader_workers=None, processes_per_run=1
    ),
)


def load_paper(folder: Path = Path("paper"), root: Path = Path()) -> Paper:
    """Read and check a paper's tables.yaml and params.yaml, and recipes/.

    Raises:
        UserError: one line per mistake, each naming file and field.
    """
    recipes = config.load_recipes(root)
    tables, params = root / folder / "tables.yaml", root / folder / "params.yaml"
    mistakes: list[str] = []
    parts: dict[str, Item] = config.read_entries(tables, KINDS, mistakes)
    spending = config.read_settings(params, PaperBudget, mistakes)
    if mistakes or spending is None:
        raise UserError("\n".join(mistakes))
    config.check_names([name for key, part in parts.items() for name in _names(tables, key, part, recipes)])
    _check_datasets(tables, parts, recipes)
    paper = Paper(root, folder, recipes, parts, spending)
    config.check_names([(params, "data_folders", name, recipes.datasets) for name in spending.data_folders])
    config.check_names([(params, "teacher_weights", name, paper.teachers) for name in spending.teacher_weights])
    return paper


def _names(file: Path, key: str, part: Item, recipes: Recipes) -> NameChecks:
    named: NameChecks = []
    methods = [*getattr(part, "methods", ()), getattr(part, "method", None)]
    methods += [row.method for row in getattr(part, "rows", ())]
    methods += [point.method for point in part.paper] if isinstance(part, EpochsFigure) else []
    named += [(file, f"{key}: method", name, recipes.methods) for name in methods if name is not None]
    curves = part.curves if isinstance(part, PickRatioFigure) else ()
    datasets = [curve.dataset for curve in curves] or [getattr(part, "dataset", "")]
    pairs = [curve.pair for curve in curves] or list(getattr(part, "pairs", ())) or [getattr(part, "pair", "")]
    named += [(file, f"{key}: dataset", name, recipes.datasets) for name in datasets]
    named += [(file, f"{key}: pair", name, recipes.pairs) for name in pairs]
    if isinstance(part, DisagreementFigure):
        named += [(file, f"{key}: mix", part.view, config.choices("views"))]
    return named


def _check_datasets(file: Path, parts: dict[str, Item], recipes: Recipes) -> None:
    for key, part in parts.items():
        if isinstance(part, PickRatioFigure):
            used = [(curve.dataset, curve.pair) for curve in part.curves]
        else:
            pairs = [part.pair] if isinstance(part, DisagreementFigure) else part.pairs
            used = [(part.dataset, pair) for pair in pairs]
        for dataset, pair in used:
            found = recipes.datasets[dataset]
            if found.training is None or found.base_view is None:
                raise UserError(f"{file}: {key}: dataset: {dataset} has no training and views to train by")
            if dataset not in recipes.pairs[pair].datasets:
                raise UserError(f"{file}: {key}: pair: {pair} is not for {dataset}, says recipes/pairs.yaml")


def total_epochs(paper: Paper) -> float:
    """How many epochs of training a full budget has, over all cells and seeds."""
    return math.fsum(cell.epochs * cell.seeds for cell in paper.cells.values())
