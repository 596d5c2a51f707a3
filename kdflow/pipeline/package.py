"""Projects with an installed kdflow: `kdflow init` makes them.

In a clone, stages depend on the code beside them. In a project the code is installed somewhere else, where DVC cannot
see it. Its first stage `package` runs in every `dvc repro`: it writes the hash of each module and folder of the code
and the recipes, and the other stages depend on the values that they use. So another version of kdflow makes those
stages stale whose code has changed, as an edit does in a clone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML

from kdflow import config
from kdflow.config import PACKAGE, PROJECT_FILES
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.paper.dvc_yaml import DVC_PROJECT

PACKAGE_JSON = "data/package.json"
HEADER = """\
# The stages of the experiment in params.yaml, made by `kdflow init`. `package` runs every time, in a second: it writes
# hashes of kdflow's code and the recipes to data/package.json. The other stages run if what they use has changed.
"""
EXAMPLE = """\
# Your methods. An entry with the name of a built-in method replaces it. In the same way models.yaml, datasets.yaml,
# pairs.yaml, teachers.yaml and user_folder.yaml in this folder add to the built-in recipes, or replace their entries.
# This example is kd with a lower temperature: dvc exp run -S 'methods=[kd,my_kd]'
my_kd: {ce: 0.1, kl: 0.9, tau: 2.0}
"""
IGNORED = {".gitignore": "/data/\n/.kdflow/\n__pycache__/\n", ".dvcignore": "__pycache__\n*.pyc\n.venv\n.kdflow\n"}


def write_package(root: Path, out: Path) -> None:
    """Write the hashes of the code and the recipes that the project at `root` uses to a JSON file.

    Raises:
        UserError: a recipe is wrong.
    """
    content = {"code": code_hashes(), "recipes": config.merged_recipes(root)}
    files.write_text(out, json.dumps(content, indent=1) + "\n")


def code_hashes() -> dict[str, str]:
    """Return the sha256 of each module and folder of the package: the keys are paths without .py."""
    hashes: dict[str, str] = {}
    folders: dict[str, Any] = {}
    for file in config.code_files():
        path = PurePosixPath(file.relative_to(PACKAGE).as_posix())
        sha256 = files.sha256(file)
        hashes[_key(path)] = sha256
        for folder in path.parents[:-1]:
            folders.setdefault(str(folder), hashlib.sha256()).update(f"{path}\0{sha256}\n".encode())
    return hashes | {folder: digest.hexdigest() for folder, digest in folders.items()}


def _key(path: PurePosixPath) -> str:
    return str(path.with_suffix("") if path.suffix == ".py" else path)  # DVC splits keys at dots


def project_stages(stages: dict[str, Any]) -> dict[str, Any]:
    """Return the stages of a clone's dvc.yaml with dependencies on data/package.json instead of code and recipes."""
    package = {"cmd": "exec python -m stages.package", "always_changed": True, "outs": [PACKAGE_JSON]}
    found = {"package": {**package, "deps": ["stages/package.py"]}}
    for name, stage in stages.items():
        found[name] = {**stage, "do": _from_package(stage["do"])} if "do" in stage else _from_package(stage)
    return found


def _from_package(stage: dict[str, Any]) -> dict[str, Any]:
    deps, params, keys = [], [], []
    for dep in stage["deps"]:
        path = PurePosixPath(dep)
        if path.parts[0] == "kdflow":
            keys.append(f"code.{_key(path.relative_to('kdflow'))}")
        elif path.parts[0] == "recipes":
            keys.append(f"recipes.{path.stem}")
        else:
            deps.append(dep)
    for entry in stage.get("params", []):
        if isinstance(entry, dict) and (file := PurePosixPath(next(iter(entry)))).parts[0] == "recipes":
            keys += [f"recipes.{file.stem}.{key}" for key in entry[str(file)]]
        else:
            params.append(entry)
    return {**stage, "deps": deps, "params": [*params, {PACKAGE_JSON: keys}]}


def init(folder: Path) -> None:
    """Write a new project to a folder, with DVC's configuration, and make it a git repository unless it is in one.

    Raises:
        UserError: the folder exists and is not empty, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give the name of a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; give the name of a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(PROJECT_FILES / "params.yaml", folder)
    scripts = PROJECT_FILES.glob("stages/*.py")
    (folder / "stages").mkdir()
    for script in sorted(scripts):
        if not script.name.startswith("paper_"):
            shutil.copy(script, folder / "stages")
    (folder / "recipes").mkdir()
    files.write_text(folder / "recipes/methods.yaml", EXAMPLE)
    for name, content in {**DVC_PROJECT, **IGNORED}.items():
        files.write_text(folder / name, content)
    _write_dvc_yaml(folder / "dvc.yaml")
    _use_git(folder)


def _write_dvc_yaml(file: Path) -> None:
    content = YAML(typ="safe").load(PROJECT_FILES / "dvc.yaml")
    yaml = YAML()
    yaml.width = 1000
    with files.atomic_write(file) as part, part.open("w", encoding="utf-8") as stream:
        stream.write(HEADER)
        yaml.dump({**content, "stages": project_stages(content["stages"])}, stream)


def _use_git(folder: Path) -> None:
    if shutil.which("git") is None:
        files.write_text(folder / ".dvc/config.local", "[core]\n    no_scm = true\n")
    elif subprocess.run(["git", "-C", folder, "rev-parse"], capture_output=True, check=False).returncode != 0:
        done = subprocess.run(["git", "init", "-q", folder], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UserError(f"{folder}: git init: {' '.join(done.stderr.split())}")
