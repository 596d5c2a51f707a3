"""Run records: one JSON per seed, from which every table is made. Never imports torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from kdflow import __version__
from kdflow.config import PACKAGE, Dataset, RunSettings, Settings
from kdflow.core import files
from kdflow.core.errors import UserError

LIBRARIES = ("torch", "torchvision", "numpy", "h5py", "scikit-learn", "pillow")


class Epoch(Settings):
    """One finished epoch: learning rate of its first step, mean training loss, test accuracy in percent if measured.

    `first_step_loss` is the loss of its first step: that of a run is computed before anything was learned, so that it is
    the same on every processor to rounding.
    `pick_ratio` is r of the paper's Eq. 4, the mean over the epoch's steps, where the method picks.
    """

    epoch: int
    lr: float
    loss: float
    first_step_loss: float
    top1: float | None
    pick_ratio: float | None = None


class Budget(Settings):
    """What was spent, beside what a full run of this dataset spends: a small run says that it is small."""

    epochs: int
    full_epochs: int
    train_images: int
    full_train_images: int
    demo: bool

    @property
    def budget_note(self) -> str:
        """A remark for every table and figure made from such a run; empty for a full one."""
        parts = ["demo dataset"] if self.demo else []
        if self.epochs < self.full_epochs:
            parts.append(f"{self.epochs} of {self.full_epochs} epochs")
        if self.train_images < self.full_train_images:
            parts.append(f"{self.train_images:,} of {self.full_train_images:,} training images")
        return ", ".join(parts)


class Code(Settings):
    """Which code ran: the hash of kdflow's source, and the commit where git knows one."""

    version: str
    sha256: str
    commit: str | None
    modified: bool | None


class Machine(Settings):
    """Where it ran. Another processor may differ in the last digits. `workers`: processes that read image files."""

    platform: str
    device: str
    cpus: int
    threads: int
    loader_workers: int
    python: str
    versions: dict[str, str]
    processes_per_run: int = 1


class Timing(Settings):
    """The only part of a record that differs when a run is repeated on the same machine.

    About `asked` views the teacher was asked, about `read` views a store had what it says.
    """

    started: str
    seconds: float
    images_per_second: float
    resumed: int
    teacher_views_computed: int
    teacher_views_read: int


class Accuracy(Settings):
    """Share of test images, in percent."""

    top1: float
    top5: float


class TeacherRecord(Settings):
    """The teacher's weights and what they measure on the test set."""

    architecture: str
    source: str
    sha256: str
    accuracy: Accuracy


class RunLog(Settings):
    """What training writes."""

    name: str
    settings: RunSettings
    settings_sha256: str
    budget: Budget
    dataset_sha256: str
    teacher_sha256: str | None
    weights_sha256: str
    curve: Annotated[tuple[Epoch, ...], Field(strict=False, min_length=1)]
    code: Code
    machine: Machine
    timing: Timing
    class_names: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @property
    def tested(self) -> dict[int, float]:
        """Test accuracy in percent after each epoch where it was measured."""
        return {point.epoch: point.top1 for point in self.curve if point.top1 is not None}


class Best(Settings):
    """The epoch of the highest test accuracy, in percent. Chosen on the test set: never a result."""

    epoch: int
    top1: float


class RunRecord(RunLog):
    """A run's log with its result: the last epoch's accuracy, measured from the exported weights.

    `agreement` is the share of test images, in percent, of which student and teacher say the same class; none where
    no teacher was asked.
    """

    final: Accuracy
    best: Best
    agreement: float | None


class MeanStd(Settings):
    """Mean and sample standard deviation (ddof 1) over n seeds; no deviation for one."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ({self.std:.2f})" if self.std is not None else "")

    @property
    def signed(self) -> str:
        """As a gain is printed."""
        return f"{'+' if self.mean >= 0 else ''}{self}"


def mean_std(values: Sequence[float]) -> MeanStd:
    """Mean and sample standard deviation of the seeds' figures."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return MeanStd(mean=statistics.fmean(values), std=std, n=len(values))


def budget_note(runs: Iterable[RunLog]) -> str:
    """What runs were made at, each budget once, where that is less than a full one."""
    return "; ".join(sorted({run.budget.budget_note for run in runs} - {""}))


def best_epoch(log: RunLog) -> Best:
    """The earliest of the epochs with the highest test accuracy."""
    top1, epoch = max((top1, -epoch) for epoch, top1 in log.tested.items())
    return Best(epoch=-epoch, top1=top1)


def make_budget(run: RunSettings, dataset: Dataset) -> Budget:
    """The run's budget beside the dataset's full one."""
    assert dataset.training is not None, "config.load() refuses to run on a dataset without"
    return Budget(
        epochs=run.training.epochs,
        full_epochs=dataset.training.epochs,
        train_images=run.train_images,
        full_train_images=dataset.data.train_images,
        demo=dataset.demo,
    )


def code_version() -> Code:
    """The code that is running."""

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):  # no git, or no repository
            return None

    changes = git("status", "--porcelain", "--", str(PACKAGE))
    return Code(
        version=__version__,
        sha256=code_sha256(),
        commit=git("rev-parse", "HEAD"),
        modified=None if changes is None else bool(changes),
    )


def code_sha256(*parts: str) -> str:
    """SHA-256 over the source of kdflow, or of some of its packages, in hex."""
    digest = hashlib.sha256()
    for file in sorted(file for part in parts or ("**",) for file in PACKAGE.glob(f"{part}/*.py")):
        digest.update(f"{file.relative_to(PACKAGE).as_posix()}\0{files.sha256(file)}\n".encode())
    return digest.hexdigest()


def machine_info(device: str, threads: int, workers: int, processes: int) -> Machine:
    """This machine; `device` as torch names it, `processes` are those that train one run together."""
    return Machine(
        platform=platform.platform(),
        device=device,
        cpus=os.cpu_count() or 1,
        threads=threads,
        loader_workers=workers,
        python=platform.python_version(),
        versions={name: importlib.metadata.version(name) for name in LIBRARIES},
        processes_per_run=processes,
    )


def write_record(path: Path, record: Settings) -> None:
    """Write a record as indented JSON."""
    files.write_text(path, record.model_dump_json(indent=2) + "\n")


R = TypeVar("R", bound=Settings)


def read_record(path: Path, kind: type[R]) -> R:
    """Read a record of this kind.

    Raises:
        UserError: the file is missing or no such record.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such record; `dvc repro` makes it") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = [".".join(str(part) for part in problem["loc"])] if problem["loc"] else []
        reason = ": ".join([*where, problem["msg"]])
        raise UserError(f"{path}: no {kind.__name__} of this version: {reason}") from None
