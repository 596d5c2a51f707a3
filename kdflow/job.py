"""A run as it is handed to a process of its own. Never imports torch."""

from __future__ import annotations

from pathlib import Path

from kdflow.config import Compute, Frozen, Model, RunSettings
from kdflow.record import Budget


class TeacherFile(Frozen):
    """A teacher's weights and what they belong to."""

    architecture: str
    model: Model
    weights: Path


class Job(Frozen):
    """One run: what to train, from what, and where to write weights and log. `scratch` holds its checkpoint."""

    name: str
    run: RunSettings
    budget: Budget
    dataset: Path
    teacher: TeacherFile | None
    weights: Path
    log: Path
    scratch: Path
    compute: Compute
