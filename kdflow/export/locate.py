"""Where a trained student is, and what it was made from: found from a cell, a method or a file of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdflow import config
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.paper import cells
from kdflow.paper.paper import load_paper
from kdflow.training import record
from kdflow.training.record import RunLog

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class StudentFiles:
    """A student's weights and log, the file of its dataset, and that of its teacher's weights if it is there."""

    weights: Path
    log: RunLog
    dataset: Path
    teacher: Path | None


def find_weights(what: str, seed: int | None, paper: Path, root: Path) -> Path:
    """The weights of a file's path, a cell of the paper, or a method of the experiment in params.yaml.

    Args:
        seed: of a cell or a method; None: the first of those that were made.

    Raises:
        UserError: `what` is none of them, or was not made yet.
    """
    if what.endswith(SUFFIX) or Path(what).is_file():
        if seed is not None:
            raise UserError(f"--seed: {what} is a file, so of one seed")
        return Path(what)
    recipes = config.load_recipes(root)
    if what in recipes.methods:
        folder, made = root / "data/students" / what, f"dvc repro distill@{what}"
    elif (root / paper / "tables.yaml").exists() and what in (found := load_paper(paper, root)).cells:
        folder, made = cells.cell_folder(found, what) / "students", f"dvc repro {paper}/dvc.yaml:cell@{what}"
    else:
        raise UserError(
            f"{what}: neither a student's weights ({SUFFIX}), nor a method of recipes/methods.yaml, nor a cell of "
            f"{paper}/ (`kdflow cells` lists them)"
        )
    there = {int(file.stem[4:]): file for file in folder.glob("seed*.safetensors") if file.stem[4:].isdigit()}
    if not there:
        raise UserError(f"{folder}: no student there yet; `{made}` makes it")
    if seed is not None and seed not in there:
        raise UserError(f"--seed: {folder} has no seed {seed}; it has {', '.join(map(str, sorted(there)))}")
    return there[min(there) if seed is None else seed]


def locate_inputs(weights: Path, dataset: Path | None, teacher: Path | None) -> StudentFiles:
    """What lies beside a student's weights, or in the folders above: its log, its dataset, its teacher.

    Args:
        dataset: take it from here; None looks for it.
        teacher: likewise. A teacher that is looked for and not there is no mistake, a wrong one is left out.

    Raises:
        UserError: log or dataset is missing.
    """
    if not weights.is_file():
        raise UserError(f"{weights}: {'is a folder, not a file' if weights.is_dir() else 'no such file'}")
    beside = weights.with_suffix(".json")
    if not beside.exists():
        raise UserError(f"{weights}: its log {beside.name} is not beside it; it says what the weights are")
    log = record.read_record(beside, RunLog)
    run = log.settings
    above = list(weights.absolute().parents)
    if dataset is None:
        places = [folder / name for folder in above for name in (f"{run.dataset}.h5", "dataset.h5")]
        dataset = next((file for file in places if file.is_file()), None)
    if dataset is None:
        raise UserError(f"{weights}: its dataset, {run.dataset}.h5 or dataset.h5, is not above; --data names it")
    if run.teacher is None:
        return StudentFiles(weights, log, dataset, None)
    if teacher is None:
        name = f"{cells.TEACHERS}/{run.dataset}-{run.teacher.name}"
        places = [folder / part / "model.safetensors" for folder in above for part in ("teacher", name)]
        teacher = next((f for f in places if f.is_file() and files.sha256(f) == log.teacher_sha256), None)
    elif not teacher.is_file() or files.sha256(teacher) != log.teacher_sha256:
        raise UserError(f"--teacher: {teacher}: not the teacher's weights, sha256 {log.teacher_sha256}")
    return StudentFiles(weights, log, dataset, teacher)
