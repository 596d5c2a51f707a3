"""The status of a paper's cells: which are done, from which inputs, and which are out of date. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

from kdflow.config import PROJECT_FILES, Experiment, Settings
from kdflow.core import files
from kdflow.paper.item import GOLDEN
from kdflow.paper.paper import Cell, Paper
from kdflow.paper.project_stages import is_clone
from kdflow.training import record
from kdflow.training.record import MeanStd, RunLog, RunRecord, TeacherRecord, mean_std

Status = Literal["done", "partial", "stale", "missing"]
TEACHERS, CELLS, CELL_RECORD = "teachers", "cells", "cell.json"
# The fields of a cell's record that are computed from those of its seeds.
SUMMARISED = ("budget_note", "top1", "top5", "agreement", "loss", "first_step_loss")


class SeedHashes(Settings):
    """The hash of one seed's settings, and of the file of its record."""

    settings_sha256: str
    record_sha256: str


class CellRecord(Settings):
    """The inputs of a cell and its metrics over seeds: accuracy and agreement in percent, and training losses.

    `loss` is the mean loss of the last epoch, `first_step_loss` the loss of the first step of training. `budget_note`
    states a reduced budget; it is empty for a full one.
    """

    cell: Cell
    runs: dict[int, SeedHashes]
    dataset_sha256: str
    teacher_sha256: str | None
    golden_sha256: str
    budget_note: str
    top1: MeanStd
    top5: MeanStd
    agreement: MeanStd | None
    loss: MeanStd
    first_step_loss: MeanStd


@dataclass(frozen=True)
class CellStatus:
    """A cell's status, how many of its seeds are up to date, and why it is stale (else an empty string)."""

    status: Status
    seeds_done: int
    seeds_total: int
    reason: str
    record: CellRecord | None


class DatasetRecord(Settings):
    """A prepared dataset: its hash and its numbers of images."""

    dataset: str
    sha256: str
    train_images: int
    test_images: int


def cell_folder(paper: Paper, name: str) -> Path:
    """Return the folder of a cell's records."""
    return paper.root / paper.data / CELLS / name


def teacher_folder(paper: Paper, name: str) -> Path:
    """Return the folder of a teacher's weights and record."""
    return paper.root / paper.data / TEACHERS / name


def _seed_file(paper: Paper, name: str, seed: int) -> Path:
    return cell_folder(paper, name) / f"seed{seed}.json"


def golden_sha256(root: Path, method: str) -> str:
    """Return the hash of a method's golden numbers, or that of the code that trains if it has none.

    They are in tests/golden/ of a clone, or in the installed package.
    """
    file = (root if is_clone(root) else PROJECT_FILES) / GOLDEN / f"{method}.json"
    return files.sha256(file) if file.exists() else record.code_sha256("methods", "models", "training")


def make_cell_record(paper: Paper, name: str, records: list[RunRecord]) -> CellRecord:
    """Summarise the records of a cell's seeds, which must already be in its folder."""
    cell, first = paper.cells[name], records[0]
    agreements = [r.agreement for r in records if r.agreement is not None]
    runs = {
        r.settings.seed: SeedHashes(
            settings_sha256=r.settings_sha256,
            record_sha256=files.sha256(_seed_file(paper, name, r.settings.seed)),
        )
        for r in records
    }
    return CellRecord(
        cell=cell,
        runs=runs,
        dataset_sha256=first.dataset_sha256,
        teacher_sha256=first.teacher_sha256,
        golden_sha256=golden_sha256(paper.root, cell.method),
        budget_note=first.budget.budget_note,
        top1=mean_std([r.final.top1 for r in records]),
        top5=mean_std([r.final.top5 for r in records]),
        agreement=mean_std(agreements) if agreements else None,
        loss=mean_std([r.curve[-1].loss for r in records]),
        first_step_loss=mean_std([r.curve[0].first_step_loss for r in records]),
    )


class CellStatuses:
    """The statuses of a paper's cells. Each file is read once, when it is first needed."""

    def __init__(self, paper: Paper) -> None:
        self.paper = paper
        self._golden_sha256 = cache(partial(golden_sha256, paper.root))
        self._teacher_sha256 = cache(self._read_teacher_sha256)
        self._dataset_sha256 = cache(self._read_dataset_sha256)
        self._status = cache(self._find_status)
        self._runs = cache(self._read_runs)

    def __call__(self, name: str) -> CellStatus:
        """Return the status of a cell.

        Raises:
            UserError: there is no such cell, or its record cannot be read.
        """
        return self._status(name)

    def _find_status(self, name: str) -> CellStatus:
        cell = self.paper.get_cell(name)
        experiment = self.paper.experiment(cell)
        seeds, file = experiment.params.seeds, cell_folder(self.paper, name) / CELL_RECORD
        if not file.exists():
            return CellStatus("missing", 0, len(seeds), "", None)
        cell_record = record.read_record(file, CellRecord)
        changed = self._changed_inputs(cell, cell_record)
        up_to_date = {
            seed
            for seed in seeds
            if seed in cell_record.runs
            and cell_record.runs[seed].settings_sha256 == experiment.student_run(cell.method, seed).sha256
        }
        if set(cell_record.runs) & set(seeds) - up_to_date:
            changed.append("settings")
        if changed or not up_to_date:
            return CellStatus("stale", 0, len(seeds), f"{', '.join(changed or ['seeds'])} changed", cell_record)
        status: Status = "done" if len(up_to_date) == len(seeds) else "partial"
        return CellStatus(status, len(up_to_date), len(seeds), "", cell_record)

    def _changed_inputs(self, cell: Cell, cell_record: CellRecord) -> list[str]:
        """Return the inputs that differ from those that the record was made from; a missing input has not changed."""
        teacher = cell.teacher and self._teacher_sha256(f"{cell.dataset}-{cell.teacher}")
        return [
            name
            for name, recorded, current in (
                ("golden numbers", cell_record.golden_sha256, self._golden_sha256(cell.method)),
                ("dataset", cell_record.dataset_sha256, self._dataset_sha256(cell.dataset)),
                ("teacher", cell_record.teacher_sha256, teacher),
            )
            if current is not None and recorded != current
        ]

    def runs(self, name: str) -> list[RunRecord]:
        """Return the records of a cell's seeds; none if the cell is stale or missing.

        Raises:
            UserError: a record is missing or invalid, or a record or the cell's means were edited.
        """
        return self._runs(name)

    def _read_runs(self, name: str) -> list[RunRecord]:
        status = self(name)
        if status.record is None or status.seeds_done == 0:
            return []
        runs = {}
        for seed, hashes in status.record.runs.items():
            file = _seed_file(self.paper, name, seed)
            runs[seed] = record.read_record(file, RunRecord)
            if files.sha256(file) != hashes.record_sha256:
                raise record.edited(file)
        summary = make_cell_record(self.paper, name, list(runs.values()))
        if any(getattr(summary, metric) != getattr(status.record, metric) for metric in SUMMARISED):
            raise record.edited(cell_folder(self.paper, name) / CELL_RECORD)
        seeds = self.paper.experiment(self.paper.cells[name]).params.seeds
        return [runs[seed] for seed in seeds if seed in runs]

    def teacher(self, name: str) -> TeacherRecord | None:
        """Return a teacher's record, or None if it is missing or made with other settings."""
        folder = teacher_folder(self.paper, name)
        if not (folder / "record.json").exists():
            return None
        teacher = record.read_record(folder / "record.json", TeacherRecord)
        experiment = self.paper.teacher_experiment(name)
        parts = [(folder / "members" / str(i), *member) for i, member in enumerate(experiment.members())]
        same = (_has_settings(*part) for part in parts or [(folder, experiment, 0)])
        return teacher if all(same) else None

    def _read_teacher_sha256(self, name: str) -> str | None:
        file = teacher_folder(self.paper, name) / "record.json"
        return record.read_record(file, TeacherRecord).sha256 if file.exists() else None

    def _read_dataset_sha256(self, name: str) -> str | None:
        file = self.paper.root / self.paper.data / f"{name}.json"
        return record.read_record(file, DatasetRecord).sha256 if file.exists() else None


def _has_settings(folder: Path, experiment: Experiment, seed: int) -> bool:
    """Return whether a model of a teacher was made with the settings of the experiment."""
    given = experiment.params.teacher_weights
    if given.file is not None and given.sha256 is not None:
        return given.sha256 in record.read_record(folder / "record.json", TeacherRecord).source
    if not (folder / "training.json").exists():
        return False
    log = record.read_record(folder / "training.json", RunLog)
    return log.settings_sha256 == experiment.teacher_run(seed).sha256


def copy_records(paper: Paper, out: Path) -> list[str]:
    """Copy the records of datasets, teachers and finished cells to `out`, in the same folders; return the cells.

    Such a folder can be kept in git and given to `load_paper`. It has no weights and no images.
    """
    statuses, source = CellStatuses(paper), paper.root / paper.data
    names = [name for name in paper.cells if statuses.runs(name)]
    wanted = [source / f"{dataset}.json" for dataset in paper.datasets]
    teachers = [teacher_folder(paper, name) for name in paper.teachers]
    folders = [part for folder in teachers for part in (folder, *sorted(folder.glob("members/*")))]
    wanted += [folder / file for folder in folders for file in ("record.json", "training.json")]
    for name in names:
        wanted += [cell_folder(paper, name) / CELL_RECORD]
        wanted += [_seed_file(paper, name, run.settings.seed) for run in statuses.runs(name)]
    wanted += [source / name / "disagreement.json" for name in paper.items]
    for file in wanted:
        if file.exists():
            files.write_bytes(out / file.relative_to(source), file.read_bytes())
    return names
