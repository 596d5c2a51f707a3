"""A run as it is handed to a process of its own. Never imports torch."""

from __future__ import annotations

from pathlib import Path

from kdflow.config import Compute, Frozen, RunSettings
from kdflow.record import Budget


class Job(Frozen):
    """One run: what to train, from what, and where to write weights and log. `scratch` holds its checkpoint.

    `teacher` is the file of the weights that `run.teacher` has; `place` its number among the runs side by side.
    """

    name: str
    run: RunSettings
    budget: Budget
    dataset: Path
    teacher: Path | None
    weights: Path
    log: Path
    scratch: Path
    compute: Compute
    place: int = 0
