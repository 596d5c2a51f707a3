"""The paper as targets: tables.yaml -> cells -> stages. Pure: never imports torch, trains nothing.

A part is a table or a figure. A cell is what a part prints: a student, distilled by one method from so many seeds.
Cells of the same settings are one cell, whoever prints it. `write` makes cells.json and dvc.yaml, by which DVC knows
them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from ruamel.yaml import YAML

from kdflow import config, files
from kdflow.config import (
    BaseViewName,
    Compute,
    Experiment,
    Frozen,
    Names,
    Pair,
    Params,
    Percent,
    Positive,
    Precision,
    Recipes,
    Seeds,
    TeacherWeights,
)
from kdflow.errors import UserError

GOLDEN = Path("tests/golden")
MADE = "Made of tables.yaml by `kdflow plan`; not edited by hand."

Listed = Annotated[tuple[str, ...], Field(strict=False, min_length=1), AfterValidator(config.distinct)]
Notes = Annotated[tuple[str, ...], Field(strict=False)]
Numbers = Annotated[tuple[float | None, ...], Field(strict=False)]
Metric = Literal["top1", "top5"]


# --- tables.yaml -------------------------------------------------------------------------------------------


class Printed(Frozen):
    """What the paper prints in a row, a figure per pair, in percent; null where it prints none."""

    top1: Numbers
    top5: Numbers | None = None
    std: Numbers | None = None


class Row(Frozen):
    """A row: a method at a number of epochs (null: the dataset's own); without a method, the teachers."""

    label: str
    method: str | None = None
    epochs: Positive | None = None
    paper: Printed | None = None
    quoted: str | None = None


class Results(Frozen):
    """A table of accuracies: rows by pairs."""

    kind: Literal["results"]
    caption: str
    dataset: str
    pairs: Listed
    seeds: Positive = 3
    metrics: Annotated[tuple[Metric, ...], Field(strict=False, min_length=1)] = ("top1",)
    rows: Annotated[tuple[Row, ...], Field(strict=False, min_length=1)]
    notes: Notes = ()

    @model_validator(mode="after")
    def _is_a_grid(self) -> Results:
        labels = [row.label for row in self.rows]
        config.distinct(tuple(labels))
        for row in self.rows:
            for name, values in (row.paper or Printed(top1=(None,) * len(self.pairs))).model_dump().items():
                if values is not None and len(values) != len(self.pairs):
                    raise ValueError(f"rows: {row.label}: paper.{name}: {len(values)} of {len(self.pairs)} pairs")
        return self


class Costs(Frozen):
    """A table of parameters (1e6) and FLOPs (1e9); `paper` has a figure per pair."""

    kind: Literal["costs"]
    caption: str
    dataset: str
    pairs: Listed
    paper: dict[str, Numbers] = Field(default_factory=dict)
    notes: Notes = ()


class Optimum(Frozen):
    """The lowest point of a curve in the paper's figure, in percent."""

    base_view: BaseViewName
    method: str
    epochs: Positive
    error: Percent


class Epochs(Frozen):
    """A figure of the test error against the total number of epochs: a panel per pair and base view."""

    kind: Literal["epochs"]
    caption: str
    dataset: str
    pairs: Listed
    methods: Listed
    base_views: Annotated[tuple[BaseViewName, ...], Field(strict=False, min_length=1), AfterValidator(config.distinct)]
    epochs: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1), AfterValidator(config.distinct)]
    paper: Annotated[tuple[Optimum, ...], Field(strict=False)] = ()
    seeds: Positive = 3
    notes: Notes = ()


class Curve(Frozen):
    """A pair on a dataset."""

    dataset: str
    pair: str


class PickRatio(Frozen):
    """A figure of r (Eq. 4) along training."""

    kind: Literal["pick_ratio"]
    caption: str
    method: str
    curves: Annotated[tuple[Curve, ...], Field(strict=False, min_length=1)]
    seeds: Positive = 3
    notes: Notes = ()


class Disagreement(Frozen):
    """A figure of strong views whose label the pair's teacher sees otherwise; `paper`: on how many, in percent."""

    kind: Literal["disagreement"]
    caption: str
    dataset: str
    pair: str
    mix: str
    paper: Percent | None = None
    notes: Notes = ()


Part = Results | Costs | Epochs | PickRatio | Disagreement
KINDS: dict[str, Any] = {
    "results": Results,
    "costs": Costs,
    "epochs": Epochs,
    "pick_ratio": PickRatio,
    "disagreement": Disagreement,
}


# --- the paper's params.yaml -------------------------------------------------------------------------------


class Spending(Frozen):
    """What the paper's runs may cost, and where they get what they need. Every key must be there.

    Every number of epochs is multiplied by `epoch_scale`, of every dataset the share `train_share` is used.
    `teacher_weights` has files for teachers that are not to be trained here, by the names of their stages.
    """

    seeds: Seeds
    epoch_scale: Annotated[float, Field(gt=0)]
    teacher_epoch_scale: Annotated[float, Field(gt=0)]
    train_share: config.Part
    data_folders: dict[str, str | None]
    teacher_weights: dict[str, TeacherWeights | None]
    logits: Literal["online", "replay", "replay-float32"]
    precision: Precision
    compute: Compute


# --- cells -------------------------------------------------------------------------------------------------


class Teacher(Frozen):
    """A teacher on a dataset."""

    dataset: str
    architecture: str


class Cell(Frozen):
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
    parts: dict[str, Part]
    spending: Spending

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
        names, views = self.recipes.pairs[pair], self.recipes.datasets[dataset].views
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
        return self._experiment(cell, FULL).student_run(cell.method, 0).sha256

    def wanted(self, part: Part) -> Iterator[Cell]:
        """The cells of a part, as often as it prints them."""
        if isinstance(part, Results):
            for row in part.rows:
                if row.method is not None:
                    for pair in part.pairs:
                        yield self._cell(part.dataset, pair, row.method, row.epochs, None, part.seeds)
        elif isinstance(part, Epochs):
            for pair in part.pairs:
                for view in part.base_views:
                    for method in part.methods:
                        for epochs in part.epochs:
                            yield self._cell(part.dataset, pair, method, epochs, view, part.seeds)
        elif isinstance(part, PickRatio):
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
        found = [(part.dataset, part.pair) for part in self.parts.values() if isinstance(part, Disagreement)]
        asked = [(d, self.recipes.pairs[pair].teacher) for d, pair in found]
        asked += [(cell.dataset, cell.teacher) for cell in self.cells.values() if cell.teacher is not None]
        asked += [
            (part.dataset, self.recipes.pairs[pair].teacher)
            for part in self.parts.values()
            if isinstance(part, Results)
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
            raise config.unknown(f"{self.folder}: cell", name, self.cells)
        return self.cells[name]

    def part_named(self, name: str) -> Part:
        """The part of a name.

        Raises:
            UserError: there is none.
        """
        if name not in self.parts:
            raise config.unknown(f"{self.folder}: table or figure", name, self.parts)
        return self.parts[name]

    def experiment(self, cell: Cell) -> Experiment:
        """A cell at the budget in hand, as the experiment that its stage runs."""
        return self._experiment(cell, self.spending)

    def _experiment(self, cell: Cell, spending: Spending) -> Experiment:
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
            raise config.unknown(f"{self.folder}: teacher", name, self.teachers)
        dataset, architecture = self.teachers[name].dataset, self.teachers[name].architecture
        params = self._params(self.spending, dataset, architecture, architecture)
        return Experiment.model_construct(params=params, **dict(self.recipes))

    def _params(self, spending: Spending, dataset: str, teacher: str, student: str) -> Params:
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
            logits=spending.logits,
            student=student,
            methods=("ce",),
            seeds=spending.seeds,
            epochs=None,
            batch_size=None,
            lr=None,
            precision=spending.precision,
            compute=spending.compute,
        )


FULL = Spending(
    seeds=(0,),
    epoch_scale=1.0,
    teacher_epoch_scale=1.0,
    train_share=1.0,
    data_folders={},
    teacher_weights={},
    logits="online",
    precision=Precision(),
    compute=Compute(device="auto", threads=1, side_by_side=None, replay_gb=1.0, workers=None, processes=1),
)


def load(folder: Path = Path("paper"), root: Path = Path()) -> Paper:
    """Read and check a paper's tables.yaml and params.yaml, and recipes/.

    Raises:
        UserError: one line per mistake, each naming file and field.
    """
    recipes = config.load_recipes(root)
    tables, params = root / folder / "tables.yaml", root / folder / "params.yaml"
    mistakes: list[str] = []
    parts: dict[str, Part] = config.entries(tables, KINDS, mistakes)
    spending = config.validated(params, Spending, mistakes)
    if mistakes or spending is None:
        raise UserError("\n".join(mistakes))
    config.check_names([name for key, part in parts.items() for name in _names(tables, key, part, recipes)])
    _check_datasets(tables, parts, recipes)
    paper = Paper(root, folder, recipes, parts, spending)
    config.check_names([(params, "data_folders", name, recipes.datasets) for name in spending.data_folders])
    config.check_names([(params, "teacher_weights", name, paper.teachers) for name in spending.teacher_weights])
    return paper


def _names(file: Path, key: str, part: Part, recipes: Recipes) -> Names:
    named: Names = []
    methods = [*getattr(part, "methods", ()), getattr(part, "method", None)]
    methods += [row.method for row in getattr(part, "rows", ())]
    methods += [point.method for point in part.paper] if isinstance(part, Epochs) else []
    named += [(file, f"{key}: method", name, recipes.methods) for name in methods if name is not None]
    curves = part.curves if isinstance(part, PickRatio) else ()
    datasets = [curve.dataset for curve in curves] or [getattr(part, "dataset", "")]
    pairs = [curve.pair for curve in curves] or list(getattr(part, "pairs", ())) or [getattr(part, "pair", "")]
    named += [(file, f"{key}: dataset", name, recipes.datasets) for name in datasets]
    named += [(file, f"{key}: pair", name, recipes.pairs) for name in pairs]
    if isinstance(part, Disagreement):
        named += [(file, f"{key}: mix", part.mix, config.choices("views"))]
    return named


def _check_datasets(file: Path, parts: dict[str, Part], recipes: Recipes) -> None:
    for key, part in parts.items():
        if isinstance(part, PickRatio):
            used = [(curve.dataset, curve.pair) for curve in part.curves]
        else:
            pairs = [part.pair] if isinstance(part, Disagreement) else part.pairs
            used = [(part.dataset, pair) for pair in pairs]
        for dataset, pair in used:
            found = recipes.datasets[dataset]
            if found.training is None or found.views is None:
                raise UserError(f"{file}: {key}: dataset: {dataset} has no training and views to train by")
            if dataset not in recipes.pairs[pair].datasets:
                raise UserError(f"{file}: {key}: pair: {pair} is not for {dataset}, says recipes/pairs.yaml")


def quoted(pair: Pair, dataset: str, role: Literal["teacher", "student"], metric: Metric) -> float | None:
    """What the paper prints for a pair's teacher, or for its student without one, in percent."""
    said = pair.datasets[dataset]
    value = None if said is None else getattr(said, f"{role}_{metric}")
    assert value is None or isinstance(value, float)
    return value


# --- stages ------------------------------------------------------------------------------------------------


def cells_json(paper: Paper) -> str:
    """cells.json: what the templates of dvc.yaml are filled with, and who prints which cell."""
    cells = {
        name: {
            **cell.model_dump(),
            # A template has one list of dependencies: who asks no teacher depends on its dataset's summary instead.
            "asks": (paper.data / _asked(cell)).as_posix(),
            "taught_by": cell.teacher or cell.student,
            "parts": paper.users[name],
        }
        for name, cell in paper.cells.items()
    }
    teachers = {name: teacher.model_dump() for name, teacher in paper.teachers.items()}
    lines = [f'"note": {json.dumps(MADE)}', f'"datasets": {json.dumps(paper.datasets)}']
    named: dict[str, dict[str, Any]] = {"teachers": teachers, "cells": cells}
    for key, items in named.items():
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(item)}" for name, item in items.items())
        lines.append(f'"{key}": {{\n{rows}\n}}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _asked(cell: Cell) -> str:
    return f"teachers/{cell.dataset}-{cell.teacher}" if cell.teacher else f"{cell.dataset}.json"


def dvc_yaml(paper: Paper) -> str:
    """dvc.yaml: a stage per dataset, teacher, cell and part, and one for the page of all."""
    text = StringIO()
    yaml = YAML()
    yaml.width = 1000
    yaml.dump({"vars": ["cells.json"], "stages": _stages(paper)}, text)
    return f"# {MADE}\n# What a stage depends on is said in kdflow/plan.py.\n{text.getvalue()}"


def _stage(paper: Paper, kind: str, name: str, **rest: Any) -> dict[str, Any]:
    up = "/".join([".."] * len(paper.folder.parts))
    return {"wdir": up, "cmd": f"exec python stages/paper_{kind}.py {paper.folder.as_posix()} {name}".rstrip(), **rest}


def _stages(paper: Paper) -> dict[str, Any]:
    """All stages, from datasets to the page."""
    data = paper.data.as_posix()
    stages: dict[str, Any] = {
        "prepare": {"foreach": "${datasets}", "do": _prepare(paper)},
        "teacher": {"foreach": "${teachers}", "do": _teacher(paper)},
        "cell": {"foreach": "${cells}", "do": _student(paper)},
    }
    for name, part in paper.parts.items():
        stages[name] = _stage(paper, "part", name, **_inputs(paper, name, part), outs=[f"{data}/{name}"])
        if isinstance(part, Results):
            stages[name]["metrics"] = [f"{data}/metrics/{name}.json"]
        if isinstance(part, Epochs | PickRatio):
            stages[name]["plots"] = [{f"{data}/plots/{name}.json": PLOTS[part.kind]}]
    made = ["kdflow/report", *(f"{data}/{name}" for name in paper.parts)]
    stages["report"] = _stage(paper, "report", "", deps=made, outs=[f"{data}/report.html"])
    return stages


# Datasets, teachers and cells depend on what they mean: their settings, data, teacher, and the golden file of their
# method, which changes where code changes their numbers. They do not depend on source text.


def _prepare(paper: Paper) -> dict[str, Any]:
    params = [{f"{paper.folder.as_posix()}/params.yaml": ["data_folders.${item}"]}]
    params += [{"recipes/datasets.yaml": ["${item}.data"]}]
    outs = [f"{paper.data.as_posix()}/${{item}}{suffix}" for suffix in (".h5", ".json")]
    return _stage(paper, "prepare", "${item}", params=params, outs=outs)


def _teacher(paper: Paper) -> dict[str, Any]:
    data, budget = paper.data.as_posix(), ["teacher_epoch_scale", "train_share", "precision", "teacher_weights.${key}"]
    return _stage(
        paper,
        "teacher",
        "${key}",
        deps=[f"{data}/${{item.dataset}}.h5", (GOLDEN / "ce.json").as_posix()],
        params=[
            {f"{paper.folder.as_posix()}/params.yaml": budget},
            {"recipes/datasets.yaml": ["${item.dataset}.views", "${item.dataset}.training"]},
            {"recipes/models.yaml": ["${item.architecture}"]},
        ],
        outs=[f"{data}/teachers/${{key}}"],
    )


def _student(paper: Paper) -> dict[str, Any]:
    folder, data = paper.folder.as_posix(), paper.data.as_posix()
    return _stage(
        paper,
        "cell",
        "${key}",
        deps=[f"{data}/${{item.dataset}}.h5", "${item.asks}", f"{GOLDEN.as_posix()}/${{item.method}}.json"],
        params=[
            {f"{folder}/cells.json": ["cells.${key}.seeds"]},
            {f"{folder}/params.yaml": ["seeds", "logits", "epoch_scale", "train_share", "precision"]},
            {"recipes/datasets.yaml": ["${item.dataset}.views", "${item.dataset}.training"]},
            {"recipes/models.yaml": ["${item.student}", "${item.taught_by}"]},
            {"recipes/methods.yaml": ["${item.method}"]},
        ],
        outs=[f"{data}/cells/${{key}}"],
    )


PLOTS = {
    "epochs": {"x": "epochs", "y": "error", "template": "scatter"},
    "pick_ratio": {"x": "epoch", "y": "r", "template": "scatter"},
}


def _inputs(paper: Paper, name: str, part: Part) -> dict[str, Any]:
    """Dependencies and parameters of a part."""
    data, folder = paper.data.as_posix(), paper.folder.as_posix()
    params: list[Any] = [{f"{folder}/tables.yaml": [name]}]
    if isinstance(part, Costs):
        return {"deps": ["kdflow/cost.py", "kdflow/models", "kdflow/report"], "params": [*params, *_recipes("models")]}
    deps = ["kdflow/report", *(f"{data}/cells/{cell}" for cell, users in paper.users.items() if name in users)]
    asked: list[str] = []
    if isinstance(part, Results):
        asked = [f"{part.dataset}-{paper.recipes.pairs[pair].teacher}" for pair in part.pairs]
    elif isinstance(part, Disagreement):
        asked = [f"{part.dataset}-{paper.recipes.pairs[part.pair].teacher}"]
        deps += [f"{data}/{part.dataset}.h5", "kdflow/disagreement.py"]
        params += [{f"{folder}/params.yaml": ["train_share"]}]
    deps += [f"{data}/teachers/{teacher}" for teacher in dict.fromkeys(asked)]
    return {"deps": deps, "params": [*params, *_recipes("pairs")]}


def _recipes(name: str) -> list[Any]:
    return [{f"recipes/{name}.yaml": []}]


def generated(paper: Paper) -> dict[Path, str]:
    """The files that `write` writes, with their content."""
    folder = paper.root / paper.folder
    return {folder / "cells.json": cells_json(paper), folder / "dvc.yaml": dvc_yaml(paper)}


def write(paper: Paper) -> None:
    """Write cells.json and dvc.yaml beside tables.yaml."""
    for file, content in generated(paper).items():
        if not file.exists() or file.read_text() != content:
            files.write_text(file, content)


def check(paper: Paper) -> None:
    """Check that cells.json and dvc.yaml are those of tables.yaml, and that every method has its golden file.

    Raises:
        UserError: one line per file that is not.
    """
    wrong = [
        f"{file}: not what `kdflow plan` makes of {paper.folder / 'tables.yaml'}; run it and commit what it writes"
        for file, content in generated(paper).items()
        if not file.exists() or file.read_text() != content
    ]
    methods = dict.fromkeys(["ce", *(cell.method for cell in paper.cells.values())])
    golden = [paper.root / GOLDEN / f"{method}.json" for method in methods]
    wrong += [
        f"{file}: no such golden file; `python tests/test_golden.py` makes it" for file in golden if not file.exists()
    ]
    if wrong:
        raise UserError("\n".join(wrong))


def total(paper: Paper) -> float:
    """How many epochs of training a full budget has, over all cells and seeds."""
    return math.fsum(cell.epochs * cell.seeds for cell in paper.cells.values())
