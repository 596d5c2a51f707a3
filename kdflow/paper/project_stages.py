"""Dependencies of the stages in a project of `kdflow init`, where DVC cannot see the code.

The stage `package` runs in every `dvc repro`. It writes hashes of the code, the recipes and the golden numbers to
data/package.json, and the other stages depend on the values that they use.
"""

from __future__ import annotations

import shlex
from pathlib import Path, PurePosixPath
from typing import Any

from kdflow.paper.item import GOLDEN

PACKAGE_JSON = "data/package.json"


def is_clone(root: Path) -> bool:
    """Return whether this is a clone, which has the golden numbers, so that stages depend on files of code."""
    return (root / GOLDEN).is_dir()


def package_key(path: PurePosixPath) -> str:
    """Return the key of a module or folder of kdflow in package.json."""
    return str(path.with_suffix("") if path.suffix == ".py" else path)  # DVC splits keys at dots


def project_stages(stages: dict[str, Any], folder: str = ".", up: str = ".") -> dict[str, Any]:
    """Return the stages of a clone's dvc.yaml with dependencies on data/package.json instead of code and recipes.

    `folder` is that of dvc.yaml, relative to the root of the project, and `up` the root relative to it.
    """
    file, deps = str(PurePosixPath(folder, PACKAGE_JSON)), [str(PurePosixPath(up, "stages/package.py"))]
    command = f"exec python -m stages.package {shlex.quote(file)}"
    if folder != ".":
        command = f"cd {up} && {command}"
    found = {"package": {"cmd": command, "always_changed": True, "deps": deps, "outs": [PACKAGE_JSON]}}
    for name, stage in stages.items():
        found[name] = {**stage, "do": _from_package(stage["do"], up)} if "do" in stage else _from_package(stage, up)
    return found


def _from_package(stage: dict[str, Any], up: str) -> dict[str, Any]:
    deps, params, keys = [], [], []
    for dep in stage.get("deps", []):
        path = _from_root(dep, up)
        if path.parts[0] == "kdflow":
            keys.append(f"code.{package_key(path.relative_to('kdflow'))}")
        elif path.parts[0] == "recipes":
            keys.append(f"recipes.{path.stem}")
        elif path.is_relative_to(GOLDEN.as_posix()):
            keys.append(f"golden.{path.stem}")
        else:
            deps.append(dep)
    for entry in stage.get("params", []):
        name = next(iter(entry)) if isinstance(entry, dict) else entry
        path = _from_root(name, up)
        if isinstance(entry, dict) and path.parts[0] == "recipes":
            keys += [f"recipes.{path.stem}.{key}" for key in entry[name]] or [f"recipes.{path.stem}"]
        else:
            params.append(entry)
    return {**stage, "deps": deps, "params": [*params, {PACKAGE_JSON: keys}]}


def _from_root(name: str, up: str) -> PurePosixPath:
    """Return a path of dvc.yaml relative to the root, if it is outside of the folder of dvc.yaml."""
    path = PurePosixPath(name)
    return path.relative_to(up) if path.is_relative_to(up) else path
