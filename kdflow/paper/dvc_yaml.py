"""Generation of cells.json and dvc.yaml from tables.yaml."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.paper.paper import Cell, Paper
from kdflow.paper.tables import (
    GOLDEN,
    AccuracyTable,
    CostTable,
    DisagreementFigure,
    EpochsFigure,
    Item,
    PickRatioFigure,
)

GENERATED_NOTE = "Made of tables.yaml by `kdflow plan`; not edited by hand."


def cells_json(paper: Paper) -> str:
    """cells.json: what the templates of dvc.yaml are filled with, and who prints which cell."""
    cells = {
        name: {
            **cell.model_dump(),
            # A template has one list of dependencies: who asks no teacher depends on its dataset's summary instead.
            "teacher_dep": (paper.data / _teacher_dep(cell)).as_posix(),
            "teacher_model": cell.teacher or cell.student,
            "parts": paper.users[name],
        }
        for name, cell in paper.cells.items()
    }
    teachers = {name: teacher.model_dump() for name, teacher in paper.teachers.items()}
    lines = [f'"note": {json.dumps(GENERATED_NOTE)}', f'"datasets": {json.dumps(paper.datasets)}']
    named: dict[str, dict[str, Any]] = {"teachers": teachers, "cells": cells}
    for key, items in named.items():
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(item)}" for name, item in items.items())
        lines.append(f'"{key}": {{\n{rows}\n}}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _teacher_dep(cell: Cell) -> str:
    return f"teachers/{cell.dataset}-{cell.teacher}" if cell.teacher else f"{cell.dataset}.json"


def dvc_yaml(paper: Paper) -> str:
    """dvc.yaml: a stage per dataset, teacher, cell and part, and one for the page of all."""
    text = StringIO()
    yaml = YAML()
    yaml.width = 1000
    yaml.dump({"vars": ["cells.json"], "stages": _stages(paper)}, text)
    return f"# {GENERATED_NOTE}\n# kdflow/paper/dvc_yaml.py defines the dependencies of each stage.\n{text.getvalue()}"


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
        if isinstance(part, AccuracyTable):
            stages[name]["metrics"] = [f"{data}/metrics/{name}.json"]
        if isinstance(part, EpochsFigure | PickRatioFigure):
            stages[name]["plots"] = [{f"{data}/plots/{name}.json": PLOTS[part.kind]}]
    made = ["kdflow/report", *(f"{data}/{name}" for name in paper.parts)]
    stages["report"] = _stage(paper, "report", "", deps=made, outs=[f"{data}/report.html"])
    return stages


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
            {"recipes/datasets.yaml": ["${item.dataset}.base_view", "${item.dataset}.training"]},
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
        deps=[f"{data}/${{item.dataset}}.h5", "${item.teacher_dep}", f"{GOLDEN.as_posix()}/${{item.method}}.json"],
        params=[
            {f"{folder}/cells.json": ["cells.${key}.seeds"]},
            {f"{folder}/params.yaml": ["seeds", "teacher_logits", "epoch_scale", "train_share", "precision"]},
            {"recipes/datasets.yaml": ["${item.dataset}.base_view", "${item.dataset}.training"]},
            {"recipes/models.yaml": ["${item.student}", "${item.teacher_model}"]},
            {"recipes/methods.yaml": ["${item.method}"]},
        ],
        outs=[f"{data}/cells/${{key}}"],
    )


PLOTS = {
    "epochs": {"x": "epochs", "y": "error", "template": "scatter"},
    "pick_ratio": {"x": "epoch", "y": "r", "template": "scatter"},
}


def _inputs(paper: Paper, name: str, part: Item) -> dict[str, Any]:
    """Dependencies and parameters of a part."""
    data, folder = paper.data.as_posix(), paper.folder.as_posix()
    params: list[Any] = [{f"{folder}/tables.yaml": [name]}]
    if isinstance(part, CostTable):
        return {"deps": ["kdflow/models", "kdflow/report"], "params": [*params, *_recipes("models")]}
    deps = ["kdflow/report", *(f"{data}/cells/{cell}" for cell, users in paper.users.items() if name in users)]
    asked: list[str] = []
    if isinstance(part, AccuracyTable):
        asked = [f"{part.dataset}-{paper.recipes.pairs[pair].teacher}" for pair in part.pairs]
    elif isinstance(part, DisagreementFigure):
        asked = [f"{part.dataset}-{paper.recipes.pairs[part.pair].teacher}"]
        deps += [f"{data}/{part.dataset}.h5"]
        params += [{f"{folder}/params.yaml": ["train_share"]}]
    deps += [f"{data}/teachers/{teacher}" for teacher in dict.fromkeys(asked)]
    return {"deps": deps, "params": [*params, *_recipes("pairs")]}


def _recipes(name: str) -> list[Any]:
    return [{f"recipes/{name}.yaml": []}]


def generated_files(paper: Paper) -> dict[Path, str]:
    """The files that `write` writes, with their content."""
    folder = paper.root / paper.folder
    return {folder / "cells.json": cells_json(paper), folder / "dvc.yaml": dvc_yaml(paper)}


def write_generated(paper: Paper) -> None:
    """Write cells.json and dvc.yaml beside tables.yaml."""
    for file, content in generated_files(paper).items():
        if not file.exists() or file.read_text() != content:
            files.write_text(file, content)


def check_generated(paper: Paper) -> None:
    """Check that cells.json and dvc.yaml are those of tables.yaml, and that every method has its golden file.

    Raises:
        UserError: one line per file that is not.
    """
    wrong = [
        f"{file}: not what `kdflow plan` makes of {paper.folder / 'tables.yaml'}; run it and commit what it writes"
        for file, content in generated_files(paper).items()
        if not file.exists() or file.read_text() != content
    ]
    methods = dict.fromkeys(["ce", *(cell.method for cell in paper.cells.values())])
    golden = [paper.root / GOLDEN / f"{method}.json" for method in methods]
    wrong += [
        f"{file}: no such golden file; `pytest tests/test_golden.py --update-golden` makes it"
        for file in golden
        if not file.exists()
    ]
    if wrong:
        raise UserError("\n".join(wrong))
