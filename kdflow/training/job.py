"""A run as it is handed to a process of its own. Never imports torch."""

from __future__ import annotations

from pathlib import Path

from kdflow.config import Compute, RunSettings, Settings
from kdflow.training.record import Budget


class Job(Settings):
    """One run: what to train, from what, and where to write weights and log.

    `teacher` is the file of the weights that `run.teacher` has, `store` that of its logits of all views; `place` is the
    run's number among those side by side. `scratch` holds what may be lost: runs/ the checkpoints, replay/ what
    teachers said.
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
