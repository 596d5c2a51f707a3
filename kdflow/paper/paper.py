"""A paper: its tables and figures, and the cells and teachers that they need."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from kdflow import config
from kdflow.config import BaseViewName, Experiment, Params, Recipes, Settings, TeacherWeights
from kdflow.core.errors import UserError
from kdflow.paper.budget import FULL_BUDGET, PaperBudget
from kdflow.paper.figures import DisagreementFigure, EpochsFigure, PickRatioFigure
from kdflow.paper.item import CellSpec, Item
from kdflow.paper.tables import AccuracyTable, ClaimTable, CostTable

KINDS: dict[str, type[Item]] = {
    "accuracy_table": AccuracyTable,
    "cost_table": CostTable,
    "claim_table": ClaimTable,
    "epochs_figure": EpochsFigure,
    "pick_ratio_figure": PickRatioFigure,
    "disagreement_figure": DisagreementFigure,
}

DATA = "data"  # in a paper's folder: what its stages write


class Teacher(Settings):
    """A teacher on a dataset."""

    dataset: str
    architecture: str


class Cell(Settings):
    """A student at a full budget: its number of epochs and of seeds. `teacher` is None for methods without one."""

    dataset: str
    teacher: str | None
    student: str
    method: str
    epochs: int
    base_view: BaseViewName | None
    seeds: int


class _Cells(NamedTuple):
    """Cells by name, names by the hash of their settings, and the items that print each cell."""

    cells: dict[str, Cell]
    names: dict[str, str]
    printed_in: dict[str, list[str]]


@dataclass(frozen=True)
class Paper:
    """A folder with tables.yaml and params.yaml, and the recipes that they name.

    Cells with the same settings are one cell, which all their tables and figures print. `records` is a folder to read
    results from, instead of the one that the stages write to.
    """

    root: Path
    folder: Path
    recipes: Recipes
    items: dict[str, Item]
    budget: PaperBudget
    records: Path | None = None

    @property
    def data(self) -> Path:
        """The folder that the stages write to, relative to the root."""
        return self.records or self.folder / DATA

    @property
    def up(self) -> str:
        """The root, relative to the folder."""
        return Path(os.path.relpath(self.root, self.root / self.folder)).as_posix()

    def full_epochs(self, dataset: str) -> int:
        """Return the dataset's default number of epochs."""
        training = self.recipes.datasets[dataset].training
        assert training is not None, "load_paper() refuses a dataset without training"
        return training.epochs

    def cell_name(self, spec: CellSpec) -> str:
        """Return the name of a cell.

        Raises:
            KeyError: no table or figure prints a cell with these settings.
        """
        return self._cells.names[self._settings_hash(self._cell(spec))]

    def _cell(self, spec: CellSpec) -> Cell:
        pair, view = self.recipes.pairs[spec.pair], self.recipes.datasets[spec.dataset].base_view
        assert view is not None
        return Cell(
            dataset=spec.dataset,
            teacher=pair.teacher if self.recipes.methods[spec.method].needs_teacher else None,
            student=pair.student,
            method=spec.method,
            epochs=spec.epochs or self.full_epochs(spec.dataset),
            base_view=None if view.reduced_to(spec.base_view) == view else spec.base_view,
            seeds=spec.seeds,
        )

    def _settings_hash(self, cell: Cell) -> str:
        return self._experiment(cell, FULL_BUDGET).student_run(cell.method, 0).sha256

    @cached_property
    def _cells(self) -> _Cells:
        cells: dict[str, Cell] = {}
        names: dict[str, str] = {}
        printed_in: dict[str, list[str]] = {}
        for key, item in self.items.items():
            for cell in map(self._cell, item.cells()):
                name = names.setdefault(self._settings_hash(cell), self._make_name(cell))
                known = cells.setdefault(name, cell)
                cells[name] = known.model_copy(update={"seeds": max(known.seeds, cell.seeds)})
                if key not in printed_in.setdefault(name, []):
                    printed_in[name].append(key)
        return _Cells(cells, names, printed_in)

    def _make_name(self, cell: Cell) -> str:
        parts = [cell.dataset, cell.teacher, cell.student, cell.method]
        parts += [f"e{cell.epochs}" if cell.epochs != self.full_epochs(cell.dataset) else None]
        parts += [cell.base_view and cell.base_view.replace("+", "_")]
        return "-".join(part for part in parts if part)

    @property
    def cells(self) -> dict[str, Cell]:
        """All cells by name."""
        return self._cells.cells

    @property
    def printed_in(self) -> dict[str, list[str]]:
        """The tables and figures that print each cell."""
        return self._cells.printed_in

    def cells_of(self, key: str) -> list[str]:
        """Return the names of the cells that a table or figure prints."""
        return [name for name, keys in self.printed_in.items() if key in keys]

    def teachers_of(self, item: Item) -> list[str]:
        """Return the names of the teachers that a table or figure needs beside its cells."""
        return list(dict.fromkeys(f"{d}-{self.recipes.pairs[pair].teacher}" for d, pair in item.teachers()))

    @cached_property
    def teachers(self) -> dict[str, Teacher]:
        """All teachers by name."""
        used = [(d, self.recipes.pairs[pair].teacher) for item in self.items.values() for d, pair in item.teachers()]
        used += [(cell.dataset, cell.teacher) for cell in self.cells.values() if cell.teacher is not None]
        return {f"{d}-{a}": Teacher(dataset=d, architecture=a) for d, a in dict.fromkeys(used)}

    @cached_property
    def datasets(self) -> list[str]:
        """All datasets that models are trained on."""
        return list(dict.fromkeys(teacher.dataset for teacher in self.teachers.values()))

    def get_cell(self, name: str) -> Cell:
        """Return a cell by name.

        Raises:
            UserError: there is no such cell.
        """
        if name not in self.cells:
            raise config.unknown_name(f"{self.folder}: cell", name, self.cells)
        return self.cells[name]

    def get_item(self, name: str) -> Item:
        """Return a table or figure by name.

        Raises:
            UserError: there is no such table or figure.
        """
        if name not in self.items:
            raise config.unknown_name(f"{self.folder}: table or figure", name, self.items)
        return self.items[name]

    def repro_command(self, name: str) -> str:
        """Return the command that makes a cell, teacher, table or figure."""
        kind = "cell@" if name in self.cells else "teacher@" if name in self.teachers else ""
        return shlex.join(["dvc", "--cd", self.folder.as_posix(), "repro", f"{kind}{name}"])

    def experiment(self, cell: Cell) -> Experiment:
        """Return the experiment that a cell's stage runs, at the budget of params.yaml."""
        return self._experiment(cell, self.budget)

    def _experiment(self, cell: Cell, budget: PaperBudget) -> Experiment:
        full = self.recipes.datasets[cell.dataset]
        assert full.training is not None
        # The record's budget compares a run with a full one: of this cell, not of the dataset's default.
        training = {"epochs": cell.epochs, "eval_every": budget.eval_every or full.training.eval_every}
        dataset = full.model_copy(update={"training": full.training.model_copy(update=training)})
        params = self._params(budget, cell.dataset, cell.teacher or cell.student, cell.student).model_copy(
            update={
                "base_view": cell.base_view,
                "methods": (cell.method,),
                "seeds": budget.seeds[: cell.seeds],
                "epochs": max(1, round(cell.epochs * budget.epoch_scale)),
            }
        )
        recipes = dict(self.recipes) | {"datasets": {**self.recipes.datasets, cell.dataset: dataset}}
        return Experiment.model_construct(params=params, **recipes)

    def teacher_experiment(self, name: str) -> Experiment:
        """Return the experiment that a teacher's stage runs, at the budget of params.yaml.

        Raises:
            UserError: there is no such teacher.
        """
        if name not in self.teachers:
            raise config.unknown_name(f"{self.folder}: teacher", name, self.teachers)
        dataset, architecture = self.teachers[name].dataset, self.teachers[name].architecture
        params = self._params(self.budget, dataset, architecture, architecture)
        return Experiment.model_construct(params=params, **dict(self.recipes))

    def _params(self, budget: PaperBudget, dataset: str, teacher: str, student: str) -> Params:
        images = self.recipes.datasets[dataset].data
        share = max(images.classes, round(images.train_images * budget.train_share))
        weights = budget.teacher_weights.get(f"{dataset}-{teacher}")
        return Params.model_construct(
            dataset=dataset,
            data_folder=budget.data_folders.get(dataset),
            train_images=share if budget.train_share < 1 else None,
            base_view=None,
            teacher=teacher,
            teacher_epochs=max(1, round(self.full_epochs(dataset) * budget.teacher_epoch_scale)),
            teacher_weights=weights or TeacherWeights(file=None, sha256=None, top1=None),
            teacher_logits=budget.teacher_logits,
            student=student,
            methods=("ce",),
            seeds=budget.seeds,
            epochs=None,
            batch_size=None,
            lr=None,
            training=None,
            teacher_training=None,
            teacher_init=None,
            student_init=None,
            temperature=None,
            precision=budget.precision,
            compute=budget.compute,
        )


def load_paper(folder: Path = Path("paper"), root: Path = Path(), records: Path | None = None) -> Paper:
    """Read and check a paper's tables.yaml and params.yaml, and the recipes.

    Args:
        folder: The folder of tables.yaml, relative to `root`.
        root: The project's folder.
        records: A folder to read results from, relative to `root`; None for the one that the stages write to.

    Raises:
        UserError: one line for each mistake, with file and field.
    """
    recipes = config.load_recipes(root)
    tables, params = root / folder / "tables.yaml", root / folder / "params.yaml"
    mistakes: list[str] = []
    items: dict[str, Item] = config.read_entries(tables, KINDS, mistakes)
    budget = config.read_settings(params, PaperBudget, mistakes)
    if mistakes or budget is None:
        raise UserError("\n".join(mistakes))
    config.check_names([check for key, item in items.items() for check in item.name_checks(tables, key, recipes)])
    _check_datasets(tables, items, recipes)
    paper = Paper(root, folder, recipes, items, budget, records)
    config.check_names([(params, "data_folders", name, recipes.datasets) for name in budget.data_folders])
    config.check_names([(params, "teacher_weights", name, paper.teachers) for name in budget.teacher_weights])
    return paper


def _check_datasets(file: Path, items: dict[str, Item], recipes: Recipes) -> None:
    for key, item in items.items():
        for dataset, pair in item.dataset_pairs():
            recipe = recipes.datasets[dataset]
            if recipe.training is None or recipe.base_view is None:
                raise UserError(
                    f"{file}: {key}: dataset: {dataset} has no training and base_view in recipes/datasets.yaml"
                )
            if dataset not in recipes.pairs[pair].datasets:
                raise UserError(f"{file}: {key}: pair: {pair} is not for {dataset}, see recipes/pairs.yaml")


def total_epochs(paper: Paper) -> float:
    """Return the epochs of training at a full budget, summed over all cells and seeds."""
    return math.fsum(cell.epochs * cell.seeds for cell in paper.cells.values())
