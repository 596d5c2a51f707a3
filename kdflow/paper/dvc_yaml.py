"""Generation of cells.json and dvc.yaml from tables.yaml."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.paper.item import GOLDEN, Item
from kdflow.paper.paper import Cell, Paper

GENERATED_NOTE = "Generated from tables.yaml by `kdflow plan`. Do not edit."


def cells_json(paper: Paper) -> str:
    """Return cells.json: the values of dvc.yaml's templates, and the tables and figures that print each cell."""
    cells = {
        name: {
            **cell.model_dump(),
            # All cells share one template with one list of dependencies: without a teacher the dataset's record fills
            # the teacher's place.
            "teacher_dep": (paper.data / _teacher_dep(cell)).as_posix(),
            "teacher_model": cell.teacher or cell.student,
            "printed_in": paper.printed_in[name],
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
    """Return dvc.yaml: one stage for each dataset, teacher, cell, table and figure, and one for the page."""
    text = StringIO()
    yaml = YAML()
    yaml.width = 1000
    yaml.dump({"vars": ["cells.json"], "stages": _stages(paper)}, text)
    return f"# {GENERATED_NOTE}\n# kdflow/paper/dvc_yaml.py defines the dependencies of each stage.\n{text.getvalue()}"


def _stage(paper: Paper, kind: str, name: str, **rest: Any) -> dict[str, Any]:
    up = "/".join([".."] * len(paper.folder.parts))
    return {"wdir": up, "cmd": f"exec python -m stages.paper_{kind} {paper.folder.as_posix()} {name}".rstrip(), **rest}


def _stages(paper: Paper) -> dict[str, Any]:
    """Return all stages, from datasets to the page."""
    data = paper.data.as_posix()
    stages: dict[str, Any] = {
        "prepare": {"foreach": "${datasets}", "do": _prepare(paper)},
        "teacher": {"foreach": "${teachers}", "do": _teacher(paper)},
        "cell": {"foreach": "${cells}", "do": _student(paper)},
    }
    for name, item in paper.items.items():
        stages[name] = _stage(paper, "item", name, **_inputs(paper, name, item), outs=[f"{data}/{name}"])
        if item.has_metrics:
            stages[name]["metrics"] = [f"{data}/metrics/{name}.json"]
        if item.plot is not None:
            stages[name]["plots"] = [{f"{data}/plots/{name}.json": dict(item.plot)}]
    deps = ["kdflow/report", *(f"{data}/{name}" for name in paper.items)]
    stages["report"] = _stage(paper, "report", "", deps=deps, outs=[f"{data}/report.html"])
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
    budget = ["seeds", "teacher_logits", "epoch_scale", "train_share", "eval_every", "precision"]
    return _stage(
        paper,
        "cell",
        "${key}",
        deps=[f"{data}/${{item.dataset}}.h5", "${item.teacher_dep}", f"{GOLDEN.as_posix()}/${{item.method}}.json"],
        params=[
            {f"{folder}/cells.json": ["cells.${key}.seeds"]},
            {f"{folder}/params.yaml": budget},
            {"recipes/datasets.yaml": ["${item.dataset}.base_view", "${item.dataset}.training"]},
            {"recipes/models.yaml": ["${item.student}", "${item.teacher_model}"]},
            {"recipes/methods.yaml": ["${item.method}"]},
        ],
        outs=[f"{data}/cells/${{key}}"],
    )


def _inputs(paper: Paper, name: str, item: Item) -> dict[str, Any]:
    """Return the dependencies and parameters of a table or figure."""
    data, folder = paper.data.as_posix(), paper.folder.as_posix()
    deps = [*item.code_deps]
    deps += [f"{data}/cells/{cell}" for cell in paper.cells_of(name)]
    deps += [f"{data}/{dataset}.h5" for dataset in item.image_datasets()]
    deps += [f"{data}/teachers/{teacher}" for teacher in paper.teachers_of(item)]
    params: list[Any] = [{f"{folder}/tables.yaml": [name]}]
    params += [{f"{folder}/params.yaml": [*item.budget_keys]}] if item.budget_keys else []
    return {"deps": deps, "params": [*params, {f"recipes/{item.recipe_file}.yaml": []}]}


def generated_files(paper: Paper) -> dict[Path, str]:
    """Return the generated files with their content."""
    folder = paper.root / paper.folder
    return {folder / "cells.json": cells_json(paper), folder / "dvc.yaml": dvc_yaml(paper)}


def write_generated(paper: Paper) -> None:
    """Write cells.json and dvc.yaml beside tables.yaml."""
    for file, content in generated_files(paper).items():
        if not file.exists() or file.read_text() != content:
            files.write_text(file, content)


def check_generated(paper: Paper) -> None:
    """Check that cells.json and dvc.yaml are up to date with tables.yaml, and that every method has its golden file.

    Raises:
        UserError: one line for each file that is missing or out of date.
    """
    errors = [
        f"{file}: out of date with {paper.folder / 'tables.yaml'}; run `kdflow plan` and commit the file"
        for file, content in generated_files(paper).items()
        if not file.exists() or file.read_text() != content
    ]
    methods = dict.fromkeys(["ce", *(cell.method for cell in paper.cells.values())])
    golden = [paper.root / GOLDEN / f"{method}.json" for method in methods]
    errors += [
        f"{file}: no such golden file; `pytest tests/test_golden.py --update-golden` makes it"
        for file in golden
        if not file.exists()
    ]
    if errors:
        raise UserError("\n".join(errors))
