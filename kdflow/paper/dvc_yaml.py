"""Generation of a paper's DVC project: cells.json and dvc.yaml from tables.yaml, and the files that DVC itself needs.

A paper's folder is a DVC project inside of the repository (a "subdir" of `dvc init`), so that DVC's commands in the
root do not see the paper's stages. Paths in dvc.yaml are relative to the folder. DVC requires outputs to be inside of
it, but not dependencies and parameters. It applies no .dvcignore to dependencies outside of it: files of code are
listed one by one, since folders of code also have files that Python writes.
"""

from __future__ import annotations

import json
import shlex
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from kdflow.config import PACKAGE
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.paper.item import GOLDEN, Item
from kdflow.paper.paper import DATA, Cell, Paper
from kdflow.paper.project_stages import is_clone, project_stages

GENERATED_NOTE = "Generated from tables.yaml by `kdflow plan`. Do not edit."
# Written once: DVC adds remotes to its configuration.
DVC_PROJECT = {
    ".dvc/config": "[core]\n    analytics = false\n    check_update = false\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".gitignore": f"/{DATA}/\n",
}


def cells_json(paper: Paper) -> str:
    """Return cells.json: the values of dvc.yaml's templates, and the tables and figures that print each cell."""
    cells = {
        name: {
            **cell.model_dump(),
            # All cells share one template with one list of dependencies: without a teacher the dataset's record fills
            # the teacher's place.
            "teacher_dep": f"{DATA}/{_teacher_dep(cell)}",
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
    stages = _stages(paper)
    if not is_clone(paper.root):
        stages = project_stages(stages, paper.folder.as_posix(), paper.up)
    yaml.dump({"vars": ["cells.json"], "stages": stages}, text)
    return f"# {GENERATED_NOTE}\n# kdflow/paper/dvc_yaml.py defines the dependencies of each stage.\n{text.getvalue()}"


def _stage(paper: Paper, kind: str, name: str, **rest: Any) -> dict[str, Any]:
    command = f"exec python -m stages.paper_{kind} {shlex.quote(paper.folder.as_posix())} {name}".rstrip()
    return {"cmd": f"cd {paper.up} && {command}", **rest}


def _stages(paper: Paper) -> dict[str, Any]:
    """Return all stages, from datasets to the page."""
    stages: dict[str, Any] = {
        "prepare": {"foreach": "${datasets}", "do": _prepare(paper)},
        "teacher": {"foreach": "${teachers}", "do": _teacher(paper)},
        "cell": {"foreach": "${cells}", "do": _student(paper)},
    }
    for name, item in paper.items.items():
        stages[name] = _stage(paper, "item", name, **_inputs(paper, name, item), outs=[f"{DATA}/{name}"])
        if item.has_metrics:
            stages[name]["metrics"] = [f"{DATA}/metrics/{name}.json"]
        if item.plot is not None:
            stages[name]["plots"] = [{f"{DATA}/plots/{name}.json": dict(item.plot)}]
    deps = [*_code(paper, "kdflow/report/*.py"), *_code(paper, "kdflow/report/*.j2")]
    deps += [f"{DATA}/{name}" for name in paper.items]
    stages["report"] = _stage(paper, "report", "", deps=deps, outs=[f"{DATA}/report.html"])
    return stages


def _prepare(paper: Paper) -> dict[str, Any]:
    params = [{"params.yaml": ["data_folders.${item}"]}, {f"{paper.up}/recipes/datasets.yaml": ["${item}.data"]}]
    outs = [f"{DATA}/${{item}}{suffix}" for suffix in (".h5", ".json")]
    return _stage(paper, "prepare", "${item}", params=params, outs=outs)


def _teacher(paper: Paper) -> dict[str, Any]:
    budget = ["teacher_epoch_scale", "train_share", "precision", "teacher_weights.${key}"]
    return _stage(
        paper,
        "teacher",
        "${key}",
        deps=[f"{DATA}/${{item.dataset}}.h5", f"{paper.up}/{GOLDEN.as_posix()}/ce.json"],
        params=[
            {"params.yaml": budget},
            {f"{paper.up}/recipes/datasets.yaml": ["${item.dataset}.base_view", "${item.dataset}.training"]},
            {f"{paper.up}/recipes/models.yaml": ["${item.architecture}"]},
        ],
        outs=[f"{DATA}/teachers/${{key}}"],
    )


def _student(paper: Paper) -> dict[str, Any]:
    budget = ["seeds", "teacher_logits", "epoch_scale", "train_share", "eval_every", "precision"]
    golden = f"{paper.up}/{GOLDEN.as_posix()}/${{item.method}}.json"
    return _stage(
        paper,
        "cell",
        "${key}",
        deps=[f"{DATA}/${{item.dataset}}.h5", "${item.teacher_dep}", golden],
        params=[
            {"cells.json": ["cells.${key}.seeds"]},
            {"params.yaml": budget},
            {f"{paper.up}/recipes/datasets.yaml": ["${item.dataset}.base_view", "${item.dataset}.training"]},
            {f"{paper.up}/recipes/models.yaml": ["${item.student}", "${item.teacher_model}"]},
            {f"{paper.up}/recipes/methods.yaml": ["${item.method}"]},
        ],
        outs=[f"{DATA}/cells/${{key}}"],
    )


def _inputs(paper: Paper, name: str, item: Item) -> dict[str, Any]:
    """Return the dependencies and parameters of a table or figure."""
    models = paper.recipes.models
    counted = [model for _, model in item.counted_models(paper.recipes)]
    families = {models[name].family for model in counted for name in (model, *models[model].members)}
    patterns = ["kdflow/report/*.py", *(f"kdflow/models/families/{family}.py" for family in sorted(families))]
    patterns += ["kdflow/models/*.py"] if families else []
    deps = [file for pattern in patterns for file in _code(paper, pattern)]
    deps += [f"{DATA}/cells/{cell}" for cell in paper.cells_of(name)]
    deps += [f"{DATA}/{dataset}.h5" for dataset in item.image_datasets()]
    deps += [f"{DATA}/teachers/{teacher}" for teacher in paper.teachers_of(item)]
    params: list[Any] = [{"tables.yaml": [name]}]
    params += [{"params.yaml": [*item.budget_keys]}] if item.budget_keys else []
    return {"deps": deps, "params": [*params, {f"{paper.up}/recipes/{item.recipe_file}.yaml": []}]}


def _code(paper: Paper, pattern: str) -> list[str]:
    """Return the files of code that match a pattern below the root, relative to the paper's folder.

    In a project, they are those of the installed package.
    """
    root = paper.root if is_clone(paper.root) else PACKAGE.parent
    return [f"{paper.up}/{file.relative_to(root).as_posix()}" for file in sorted(root.glob(pattern))]


def generated_files(paper: Paper) -> dict[Path, str]:
    """Return the generated files with their content."""
    folder = paper.root / paper.folder
    return {folder / "cells.json": cells_json(paper), folder / "dvc.yaml": dvc_yaml(paper)}


def write_generated(paper: Paper) -> None:
    """Write cells.json and dvc.yaml beside tables.yaml, and make the folder a DVC project unless it is one."""
    for name, content in DVC_PROJECT.items():
        if not (file := paper.root / paper.folder / name).exists():
            files.write_text(file, content)
    for file, content in generated_files(paper).items():
        if not file.exists() or file.read_text() != content:
            files.write_text(file, content)


def check_generated(paper: Paper) -> None:
    """Check that the generated files are up to date with tables.yaml, and that every method has its golden file.

    Raises:
        UserError: one line for each file that is missing or out of date.
    """
    errors = [
        f"{file}: out of date with {paper.folder / 'tables.yaml'}; run `kdflow plan` and commit the file"
        for file, content in generated_files(paper).items()
        if not file.exists() or file.read_text() != content
    ]
    errors += [
        f"{file}: no such file; run `kdflow plan` and commit the file"
        for file in (paper.root / paper.folder / name for name in DVC_PROJECT)
        if not file.exists()
    ]
    methods = [] if not is_clone(paper.root) else dict.fromkeys(["ce", *(cell.method for cell in paper.cells.values())])
    golden = [paper.root / GOLDEN / f"{method}.json" for method in methods]
    errors += [
        f"{file}: no such golden file; `pytest tests/test_golden.py --update-golden` makes it"
        for file in golden
        if not file.exists()
    ]
    if errors:
        raise UserError("\n".join(errors))
