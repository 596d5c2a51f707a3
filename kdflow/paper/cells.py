"""What became of the paper's cells: which are made, from what, and what is out of date. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from kdflow.config import Settings
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.paper.paper import Cell, Paper
from kdflow.paper.tables import GOLDEN
from kdflow.training import record
from kdflow.training.record import MeanStd, RunLog, RunRecord, TeacherRecord, mean_std

Status = Literal["done", "partial", "stale", "missing"]
TEACHERS, CELLS, NOTE = "teachers", "cells", "cell.json"


class SeedHashes(Settings):
    """One seed's run: the hash of its settings, and of its record's file."""

    settings_sha256: str
    record_sha256: str


class CellRecord(Settings):
    """What a cell was made from, and its figures over seeds: percent, and losses of the training.

    `first_step_loss` is the loss of the very first step, `loss` that of the last epoch. `budget_note` says at which budget it was
    made where that is not a full one.
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
    """A cell's state: `n` of `of` seeds are made as they are to be; `why` says what is out of date."""

    status: Status
    n: int
    of: int
    why: str
    record: CellRecord | None


def cell_folder(paper: Paper, name: str) -> Path:
    """Where a cell is."""
    return paper.root / paper.data / CELLS / name


def make_cell_record(paper: Paper, name: str, records: list[RunRecord]) -> CellRecord:
    """What is to be kept of a cell beside its records, which lie in its folder."""
    cell, some = paper.cells[name], records[0]
    same = [r.agreement for r in records if r.agreement is not None]
    made = {
        seed: SeedHashes(settings_sha256=r.settings_sha256, record_sha256=files.sha256(_file(paper, name, seed)))
        for seed, r in ((r.settings.seed, r) for r in records)
    }
    return CellRecord(
        cell=cell,
        runs=made,
        dataset_sha256=some.dataset_sha256,
        teacher_sha256=some.teacher_sha256,
        golden_sha256=files.sha256(_golden(paper, cell.method)),
        budget_note=some.budget.budget_note,
        top1=mean_std([r.final.top1 for r in records]),
        top5=mean_std([r.final.top5 for r in records]),
        agreement=mean_std(same) if same else None,
        loss=mean_std([r.curve[-1].loss for r in records]),
        first_step_loss=mean_std([r.curve[0].first_step_loss for r in records]),
    )


def _file(paper: Paper, name: str, seed: int) -> Path:
    return cell_folder(paper, name) / f"seed{seed}.json"


def _golden(paper: Paper, method: str) -> Path:
    return paper.root / GOLDEN / f"{method}.json"


class CellStatuses:
    """The states of a paper's cells, as they lay on disk when they were first asked about."""

    def __init__(self, paper: Paper) -> None:
        self.paper = paper
        self._golden = cache(self._golden_sha256)
        self._teacher = cache(self._teacher_sha256)
        self._dataset = cache(self._dataset_sha256)
        self._state = cache(self._look)
        self._runs = cache(self._read)

    def __call__(self, name: str) -> CellStatus:
        """The state of a cell.

        Raises:
            UserError: there is no such cell, or its record cannot be read.
        """
        return self._state(name)

    def _look(self, name: str) -> CellStatus:
        cell = self.paper.cell_named(name)
        experiment = self.paper.experiment(cell)
        seeds, file = experiment.params.seeds, cell_folder(self.paper, name) / NOTE
        if not file.exists():
            return CellStatus("missing", 0, len(seeds), "", None)
        found = record.read_record(file, CellRecord)
        why = [
            what
            for what, ours, now in (
                ("golden numbers", found.golden_sha256, self._golden(cell.method)),
                ("dataset", found.dataset_sha256, self._dataset(cell.dataset)),
                ("teacher", found.teacher_sha256, cell.teacher and self._teacher(f"{cell.dataset}-{cell.teacher}")),
            )
            if now is not None and ours != now
        ]
        right = {
            seed
            for seed in seeds
            if seed in found.runs
            and found.runs[seed].settings_sha256 == experiment.student_run(cell.method, seed).sha256
        }
        if set(found.runs) & set(seeds) - right:
            why.append("settings")
        if why or not right:
            return CellStatus("stale", 0, len(seeds), f"of other {', '.join(why or ['seeds'])}", found)
        return CellStatus("done" if len(right) == len(seeds) else "partial", len(right), len(seeds), "", found)

    def runs(self, name: str) -> list[RunRecord]:
        """The records of a cell that are as they are to be, seed by seed.

        Raises:
            UserError: a record is missing, is no record, or is not the one that was made.
        """
        return self._runs(name)

    def _read(self, name: str) -> list[RunRecord]:
        state = self(name)
        if state.record is None or state.n == 0:
            return []
        wanted = self.paper.experiment(self.paper.cells[name]).params.seeds
        found = []
        for seed in (seed for seed in wanted if seed in state.record.runs):
            file = _file(self.paper, name, seed)
            found.append(record.read_record(file, RunRecord))
            if files.sha256(file) != state.record.runs[seed].record_sha256:
                raise UserError(f"{file}: not the record that was made; `dvc checkout` or `dvc repro` brings it back")
        return found

    def teacher(self, name: str) -> tuple[TeacherRecord, str] | None:
        """A teacher's record and the budget_note of its budget, None where there is none as it is to be."""
        place = self.paper.root / self.paper.data / TEACHERS / name
        if not (place / "record.json").exists():
            return None
        found, budget_note = record.read_record(place / "record.json", TeacherRecord), ""
        given = self.paper.spending.teacher_weights.get(name)
        if given is not None and given.file is not None:
            return (found, budget_note) if given.sha256 is not None and given.sha256 in found.source else None
        if not (place / "training.json").exists():
            return None
        log = record.read_record(place / "training.json", RunLog)
        expected = self.paper.teacher_experiment(name).teacher_run().sha256
        return (found, log.budget.budget_note) if log.settings_sha256 == expected else None

    def _golden_sha256(self, method: str) -> str | None:
        file = _golden(self.paper, method)
        return files.sha256(file) if file.exists() else None

    def _teacher_sha256(self, name: str) -> str | None:
        file = self.paper.root / self.paper.data / TEACHERS / name / "record.json"
        return record.read_record(file, TeacherRecord).sha256 if file.exists() else None

    def _dataset_sha256(self, name: str) -> str | None:
        file = self.paper.root / self.paper.data / f"{name}.json"
        return record.read_record(file, DatasetRecord).sha256 if file.exists() else None


class DatasetRecord(Settings):
    """What was prepared."""

    dataset: str
    sha256: str
    train_images: int
    test_images: int
