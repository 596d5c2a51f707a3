"""Runs of a Python program in experiment trackers."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from kdflow.core import trackers
from kdflow.core.trackers import FINAL, TrackedRun
from kdflow.training.record import Epoch


class RunTracker:
    """A run of an experiment tracker; pass it to `distill` as `on_epoch`, within a `with` block.

    At the end of the block it writes the accuracy of the last epoch, unless images are held out: with early stopping,
    the weights of an earlier epoch may be the result.

    Args:
        tracker: tensorboard, wandb, mlflow or dvclive; its package must be installed.
        folder: the folder below which the tracker writes its files.
        name: the name of the run.
        settings: hyperparameters to show with the run; mappings in it are shown with dotted keys.

    Raises:
        UserError: the tracker is unknown or not installed, or cannot be opened.
    """

    def __init__(self, tracker: str, folder: Path | str, name: str, settings: Mapping[str, Any] | None = None) -> None:
        run = TrackedRun(Path(folder), name, uuid.uuid4().hex, trackers.flatten(settings or {}))
        self._tracker, self._top1 = trackers.open_run(tracker, run), dict[str, float]()

    def __call__(self, epoch: Epoch) -> None:
        """Write the curves of an epoch."""
        self._tracker.log(epoch.epoch, trackers.curves(epoch.model_dump()))
        if epoch.top1 is not None and epoch.held_out_top1 is None:
            self._top1 = {FINAL: epoch.top1}

    def __enter__(self) -> RunTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tracker.close(self._top1 if kind is None else {}, finished=kind is None)
