"""A run as it is passed to the process that computes it. Never imports torch."""

from __future__ import annotations

from pathlib import Path

from kdflow.config import Compute, RunSettings, Settings
from kdflow.training.record import Budget


class Job(Settings):
    """One run: its settings, inputs and outputs.

    Attributes:
        name: name of the run, for messages.
        run: settings of the run.
        budget: its budget and that of a full run.
        dataset: HDF5 file of the dataset.
        initial: file of the weights that the run starts from.
        teacher: weights of `run.teacher`.
        teacher_members: SHA-256 of the weights of each of its members, if it is an ensemble.
        views_store: store of the teacher's logits of all views.
        weights: file to write the weights to.
        log: file to write the log to.
        work_dir: folder of files that may be deleted: checkpoints in runs/, teacher logits in replay/.
        compute: where and how to compute the run.
        run_index: number of the run among those that are computed in parallel.
    """

    name: str
    run: RunSettings
    budget: Budget
    dataset: Path
    teacher: Path | None
    views_store: Path | None
    weights: Path
    log: Path
    work_dir: Path
    compute: Compute
    run_index: int = 0
    initial: Path | None = None
    teacher_members: tuple[str, ...] = ()
