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
from kdflow.paper import load_paper
from kdflow.paper.cells import golden_sha256
from kdflow.paper.dvc_yaml import DVC_PROJECT, write_generated
from kdflow.paper.project_stages import package_key, project_stages

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
    recipes = config.merged_recipes(root)
    golden = {method: golden_sha256(root, method) for method in recipes["methods"]}
    content = {"code": code_hashes(), "recipes": recipes, "golden": golden}
    files.write_text(out, json.dumps(content, indent=1) + "\n")


def code_hashes() -> dict[str, str]:
    """Return the sha256 of each module and folder of the package: the keys are paths without .py."""
    hashes: dict[str, str] = {}
    folders: dict[str, Any] = {}
    for file in config.code_files():
        path = PurePosixPath(file.relative_to(PACKAGE).as_posix())
        sha256 = files.sha256(file)
        hashes[package_key(path)] = sha256
        for folder in path.parents[:-1]:
            folders.setdefault(str(folder), hashlib.sha256()).update(f"{path}\0{sha256}\n".encode())
    return hashes | {folder: digest.hexdigest() for folder, digest in folders.items()}


def init(folder: Path, *, paper: bool = False) -> None:
    """Write a new project to a folder, with DVC's configuration, and make it a git repository unless it is in one.

    With `paper`, it has the tables and figures of the paper in paper/.

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
        if paper or not script.name.startswith("paper_"):
            shutil.copy(script, folder / "stages")
    (folder / "recipes").mkdir()
    files.write_text(folder / "recipes/methods.yaml", EXAMPLE)
    for name, content in {**DVC_PROJECT, **IGNORED}.items():
        files.write_text(folder / name, content)
    _write_dvc_yaml(folder / "dvc.yaml")
    if paper:
        (folder / "paper").mkdir()
        for name in ("params.yaml", "tables.yaml"):
            shutil.copy(PROJECT_FILES / "paper" / name, folder / "paper")
        write_generated(load_paper(Path("paper"), folder))
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
