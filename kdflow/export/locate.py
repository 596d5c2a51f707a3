"""Locate the weights, log, dataset and teacher of a trained student, or of a teacher. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdflow import config
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.paper import cells, load_paper
from kdflow.training import record
from kdflow.training.record import RunLog

SUFFIX = ".safetensors"
TEACHER = "teacher"  # the name of the experiment's teacher


@dataclass(frozen=True)
class StudentFiles:
    """A student's weights and log, and the files of its dataset and its teacher's weights if they were found.

    `role` is what was trained: a student, or a teacher, which has no teacher itself.
    """

    weights: Path
    log: RunLog
    dataset: Path | None
    teacher: Path | None
    role: Literal["student", "teacher"] = "student"


def find_weights(name: str, seed: int | None, paper: Path, root: Path) -> Path:
    """Return the file of a student's or teacher's weights.

    Args:
        name: the file's path, a cell or teacher of the paper, a method of the experiment in params.yaml, or "teacher"
            for the experiment's teacher.
        seed: the student's seed, for a cell or a method; None takes the lowest one that is there.
        paper: the paper's folder, relative to `root`.
        root: the project's folder.

    Raises:
        UserError: `name` is none of these, or the model was not trained yet.
    """
    if name.endswith(SUFFIX) or Path(name).is_file():
        if seed is not None:
            raise UserError(f"--seed: {name} is a file; --seed is for a cell or a method")
        return Path(name)
    if name == TEACHER:
        return _teacher_weights(root / "data/teacher", "dvc repro teacher", seed)
    if name in config.load_recipes(root).methods:
        folder, command = root / "data/students" / name, f"dvc repro distill@{name}"
    elif (root / paper / "tables.yaml").exists() and name in (loaded := load_paper(paper, root)).teachers:
        return _teacher_weights(cells.teacher_folder(loaded, name), loaded.repro_command(name), seed)
    elif (root / paper / "tables.yaml").exists() and name in loaded.cells:
        folder, command = cells.cell_folder(loaded, name) / "students", loaded.repro_command(name)
    else:
        raise UserError(
            f"{name}: neither a file of weights ({SUFFIX}), nor {TEACHER}, nor a method of recipes/methods.yaml, nor a "
            f"cell or teacher of {paper}/ (`kdflow cells` lists them)"
        )
    by_seed = {int(file.stem[4:]): file for file in folder.glob("seed*.safetensors") if file.stem[4:].isdigit()}
    if not by_seed:
        raise UserError(f"{folder}: no student yet; `{command}` trains it")
    if seed is not None and seed not in by_seed:
        raise UserError(f"--seed: {folder} has no seed {seed}; it has {', '.join(map(str, sorted(by_seed)))}")
    return by_seed[min(by_seed) if seed is None else seed]


def _teacher_weights(folder: Path, command: str, seed: int | None) -> Path:
    if seed is not None:
        raise UserError("--seed: a teacher has no seed; --seed is for a cell or a method")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder}: no teacher yet; `{command}` trains it")
    return weights


def locate_inputs(
    weights: Path, dataset: Path | None, teacher: Path | None, *, needs_dataset: bool = True
) -> StudentFiles:
    """Find the log, the dataset and the teacher of a student, in the folder of its weights and in those above it.

    Args:
        weights: the weights of a student or a teacher.
        dataset: the dataset's file; None searches for it.
        teacher: the teacher's weights; None searches for them. If none with the right hash is found, there is no
            error: the student is exported without its teacher.
        needs_dataset: False does not search for the dataset.

    Raises:
        UserError: the weights, the log or the dataset are missing, or `teacher` has another hash.
    """
    if not weights.is_file():
        raise UserError(f"{weights}: {'is a folder, not a file' if weights.is_dir() else 'no such file'}")
    log_file, teacher_log = weights.with_suffix(".json"), weights.with_name("training.json")
    role: Literal["student", "teacher"] = "student"
    if not log_file.exists() and teacher_log.exists():
        log_file, role = teacher_log, "teacher"
    if not log_file.exists():
        if weights.with_name("record.json").exists():
            raise UserError(f"{weights}: a teacher from a file; only models that kdflow has trained can be exported")
        raise UserError(f"{weights}: its training log {log_file.name} is missing in the same folder")
    log = record.read_record(log_file, RunLog)
    run = log.settings
    folders = list(weights.absolute().parents)
    if dataset is None and needs_dataset:
        candidates = [folder / name for folder in folders for name in (f"{run.dataset}.h5", "dataset.h5")]
        dataset = next((file for file in candidates if file.is_file()), None)
    if dataset is None and needs_dataset:
        raise UserError(
            f"{weights}: its dataset, {run.dataset}.h5 or dataset.h5, is in no folder above; give the file by --data, "
            "or export with --no-verify"
        )
    if run.teacher is None:
        return StudentFiles(weights, log, dataset, None, role)
    if teacher is None:
        name = f"{cells.TEACHERS}/{run.dataset}-{run.teacher.name}"
        candidates = [folder / part / "model.safetensors" for folder in folders for part in ("teacher", name)]
        teacher = next((f for f in candidates if f.is_file() and files.sha256(f) == log.teacher_sha256), None)
    elif not teacher.is_file() or files.sha256(teacher) != log.teacher_sha256:
        raise UserError(f"--teacher: {teacher}: not the student's teacher, whose sha256 is {log.teacher_sha256}")
    return StudentFiles(weights, log, dataset, teacher, role)
