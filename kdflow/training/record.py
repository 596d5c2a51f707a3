"""Run records: one JSON file per seed, from which all tables are made. Never imports torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from kdflow import __version__
from kdflow.config import PACKAGE, Dataset, Normalisation, RunSettings, Settings, code_files
from kdflow.core import files
from kdflow.core.errors import UserError, dotted
from kdflow.core.source import git_commit

HASH_KEY = re.compile(rb',\s*"content_sha256":\s*"(\w*)"')
TEACHER_NOTE = "teacher with "  # the start of a teacher's budget note
LIBRARIES = ("torch", "torchvision", "numpy", "h5py", "scikit-learn", "pillow")


class Epoch(Settings):
    """One finished epoch.

    Attributes:
        epoch: number of the epoch, from 1.
        lr: learning rate of its first step.
        loss: mean training loss.
        first_step_loss: loss of its first step. That of the first epoch is computed before any update, so that it is
            the same on every processor up to rounding.
        top1: test accuracy in percent, if it was measured.
        pick_ratio: mean over the steps of r of the paper's Eq. 4, if the method picks.
        held_out_top1: accuracy in percent on held-out training images, if there are some.
    """

    epoch: int
    lr: float
    loss: float
    first_step_loss: float
    top1: float | None
    pick_ratio: float | None = None
    held_out_top1: float | None = Field(default=None, exclude_if=lambda value: value is None)


class Budget(Settings):
    """Epochs and training images of a run, and those of a full run of the dataset.

    `teacher` is the budget of the run's teacher; None without a teacher, or if its budget is not known.
    """

    epochs: int
    full_epochs: int
    train_images: int
    full_train_images: int
    demo: bool
    teacher: Budget | None = None

    @property
    def reductions(self) -> list[str]:
        """The parts of the budget that are less than those of a full run."""
        parts = []
        if self.epochs < self.full_epochs:
            parts.append(f"{self.epochs} of {self.full_epochs} epochs")
        if self.train_images < self.full_train_images:
            parts.append(f"{self.train_images:,} of {self.full_train_images:,} training images")
        return parts

    @property
    def budget_note(self) -> str:
        """A note for tables and figures of a reduced run, or of a reduced teacher; empty for a full run."""
        run = ", ".join(["demo dataset", *self.reductions] if self.demo else self.reductions)
        return "; ".join(filter(None, (run, teacher_note(self.teacher))))


class Code(Settings):
    """Version of the code: the hash of kdflow's source, and the commit in a git repository."""

    version: str
    sha256: str
    commit: str | None
    modified: bool | None


class Machine(Settings):
    """The machine of a run; on another processor the last digits may differ."""

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

    Attributes:
        started: time of the first start, in UTC.
        seconds: seconds of training.
        images_per_second: training images per second.
        resumed: number of times that the run was resumed.
        teacher_views_computed: number of views whose teacher outputs were computed.
        teacher_views_read: number of views whose teacher logits were read from a store.
    """

    started: str
    seconds: float
    images_per_second: float
    resumed: int
    teacher_views_computed: int
    teacher_views_read: int


class Accuracy(Settings):
    """Accuracy on the test images, in percent."""

    top1: float
    top5: float


class TeacherRecord(Settings):
    """The teacher's weights and their accuracy on the test set.

    `budget` is None for weights that kdflow has not trained. `class_order` has the output of the original weights for
    each class, if they were reordered. `normalisation` is that of a file's weights, if it is not the dataset's.
    """

    architecture: str
    source: str
    sha256: str
    accuracy: Accuracy
    budget: Budget | None = None
    class_order: Annotated[tuple[int, ...] | None, Field(strict=False, exclude_if=lambda value: value is None)] = None
    normalisation: Normalisation | None = Field(default=None, exclude_if=lambda value: value is None)
    members: Annotated[tuple[TeacherRecord, ...], Field(strict=False, exclude_if=lambda value: not value)] = ()

    @property
    def budget_note(self) -> str:
        """A note for tables and figures if the teacher was trained with a reduced budget; else empty."""
        return teacher_note(self.budget)


class InitialRecord(Settings):
    """The file of initial weights of a run, and what became of its head."""

    sha256: str
    head: str


class RunLog(Settings):
    """Log of a run, written by training; `teacher_members` has the hash of each member of an ensemble."""

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
    initial: InitialRecord | None = Field(default=None, exclude_if=lambda value: value is None)
    teacher_members: Annotated[tuple[str, ...], Field(strict=False, exclude_if=lambda value: not value)] = ()

    @property
    def tested(self) -> dict[int, float]:
        """Test accuracy in percent, by the epochs in which it was measured."""
        return {point.epoch: point.top1 for point in self.curve if point.top1 is not None}


class Best(Settings):
    """Epoch with the highest test accuracy, in percent. It is chosen on the test set, so it is not a result."""

    epoch: int
    top1: float


class RunRecord(RunLog):
    """Log of a run with its result.

    Attributes:
        final: accuracy of the exported weights of the last epoch.
        best: the best epoch.
        agreement: percentage of test images for which student and teacher predict the same class; None without teacher.
        correct: one bit per test image in order, 1 if the exported weights predict its class, as hex digits.
    """

    final: Accuracy
    best: Best
    agreement: float | None
    correct: Annotated[str, Field(pattern="^[0-9a-f]+$")]

    def correct_images(self, test_images: int) -> list[bool]:
        """Return whether the class of each of the `test_images` images is predicted.

        Raises:
            UserError: the record is of another number of images.
        """
        bits = f"{int(self.correct, 16):0{test_images}b}"
        if len(bits) != test_images or 100 * bits.count("1") / test_images != self.final.top1:
            raise UserError(f"{self.name}: its record is not of {test_images:,} test images; evaluate it again")
        return [bit == "1" for bit in bits]


class MeanStd(Settings):
    """Mean and sample standard deviation (ddof 1) over n seeds; no deviation for one seed."""

    mean: float
    std: float | None
    n: Annotated[int, Field(ge=0, le=10**9)]

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ({self.std:.2f})" if self.std is not None else "")

    @property
    def signed(self) -> str:
        """Text with a sign, for a gain."""
        return f"{'+' if self.mean >= 0 else ''}{self}"


def mean_std(values: Sequence[float]) -> MeanStd:
    """Return mean and sample standard deviation of the values of all seeds."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return MeanStd(mean=statistics.fmean(values), std=std, n=len(values))


def budget_note(runs: Iterable[RunLog]) -> str:
    """Return the budget notes of reduced runs, each once; empty if all runs are full."""
    return "; ".join(distinct_notes(run.budget.budget_note for run in runs))


def distinct_notes(notes: Iterable[str]) -> list[str]:
    """Return the parts of budget notes, each once; those of teachers come first, because most runs have them."""
    parts = {part for note in notes for part in note.split("; ")} - {""}
    return sorted(parts, key=lambda part: (not part.startswith(TEACHER_NOTE), part))


def teacher_note(budget: Budget | None) -> str:
    """Return the note on a teacher's budget; empty if it was full or is not known."""
    reductions = [] if budget is None else budget.reductions
    return f"{TEACHER_NOTE}{', '.join(reductions)}" if reductions else ""


def pack_bits(values: Iterable[bool]) -> str:
    """Return booleans as hex digits, four in each, the first in the highest bit."""
    bits = "".join("1" if value else "0" for value in values)
    return f"{int(bits, 2):0{(len(bits) + 3) // 4}x}"


def best_epoch(log: RunLog) -> Best:
    """Return the first epoch with the highest test accuracy."""
    top1, epoch = max((top1, -epoch) for epoch, top1 in log.tested.items())
    return Best(epoch=-epoch, top1=top1)


def best_held_out(curve: Sequence[Epoch]) -> Epoch | None:
    """Return the first epoch with the highest accuracy on held-out images; None if there are none."""
    measured = [point for point in curve if point.held_out_top1 is not None]
    return max(measured, key=lambda point: point.held_out_top1 or 0.0, default=None)


def make_budget(run: RunSettings, dataset: Dataset, teacher: Budget | None = None) -> Budget:
    """Return the budget of a run, with that of a full run of the dataset and that of its teacher."""
    assert dataset.training is not None, "config.load() refuses a dataset without training settings"
    return Budget(
        epochs=run.training.epochs,
        full_epochs=dataset.training.epochs,
        train_images=run.train_images,
        full_train_images=dataset.data.train_images,
        demo=dataset.demo,
        teacher=teacher,
    )


def code_version() -> Code:
    """Return the version of the running code."""
    commit, modified = git_commit()
    return Code(version=__version__, sha256=code_sha256(), commit=commit, modified=modified)


def code_sha256(*parts: str) -> str:
    """Return the SHA-256 of the source of kdflow, or of the folders `parts` of it, in hex."""
    digest = hashlib.sha256()
    for file in sorted(file for part in parts or ("**",) for file in code_files(f"{part}/*.py")):
        digest.update(f"{file.relative_to(PACKAGE).as_posix()}\0{files.sha256(file)}\n".encode())
    return digest.hexdigest()


def machine_info(
    device: str, threads: int, loader_workers: int, processes_per_run: int, runtime: str = "torch"
) -> Machine:
    """Return the description of this machine; `device` is the name that torch gives, `runtime` runs the teacher."""
    return Machine(
        platform=platform.platform(),
        device=device,
        cpus=os.cpu_count() or 1,
        threads=threads,
        loader_workers=loader_workers,
        python=platform.python_version(),
        versions={name: importlib.metadata.version(name) for name in dict.fromkeys((*LIBRARIES, runtime))},
        processes_per_run=processes_per_run,
    )


def write_record(path: Path, record: Settings) -> None:
    """Write a record as indented JSON. Its last key is the SHA-256 of the rest, by which `read_record` sees edits."""
    content = record.model_dump_json(indent=2)
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    files.write_text(path, f'{content[:-2]},\n  "content_sha256": "{sha256}"\n}}\n')


R = TypeVar("R", bound=Settings)


def edited(path: Path) -> UserError:
    """Return the error for a record that is not as it was written."""
    return UserError(f"{path}: changed after it was written; `dvc checkout` or `dvc repro` restores it")


def read_record(path: Path, kind: type[R], *, hashed: bool = True) -> R:
    """Read a record of this kind. `hashed` is False for a file that people edit.

    Raises:
        UserError: the file is missing or invalid, or was changed after it was written.
    """
    try:
        text = path.read_bytes()
        content, sha256 = HASH_KEY.sub(b"", text).strip(), HASH_KEY.search(text)
        record = kind.model_validate_json(content)
        if hashed and (sha256 is None or sha256[1].decode() != hashlib.sha256(content).hexdigest()):
            raise edited(path)
        return record
    except FileNotFoundError:
        raise UserError(f"{path}: no such record; `dvc repro` writes it") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = ": ".join(filter(None, (dotted(first["loc"]), first["msg"])))
        raise UserError(f"{path}: not a {kind.__name__} of this version: {reason}") from None
