"""The runs of a stage in experiment trackers, as `compute.log` names them. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from kdflow.core import trackers
from kdflow.core.errors import one_line
from kdflow.core.progress import EpochDone, Event, Failed, Finished, Note, Started
from kdflow.core.trackers import FINAL, TrackedRun, Tracker
from kdflow.training import record
from kdflow.training.job import Job
from kdflow.training.record import Epoch, RunLog

FOLDER = "log"  # in the folder of unfinished work


class Tracking:
    """Passes the events of runs on to their trackers. Use it as a context manager.

    A tracker that fails while a run is trained is left out from then on, with a note: the run has its record.

    Raises:
        UserError: a tracker is not installed, or cannot be opened.
    """

    def __init__(self, title: str, jobs: Sequence[Job], show: Callable[[Note], None]) -> None:
        self._title, self._jobs, self._show = title, {job.name: job for job in jobs if job.compute.log}, show
        self._open: dict[str, dict[str, Tracker]] = {}
        trackers.require(name for job in self._jobs.values() for name in job.compute.log)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._open):
            self._close(name)

    def follow(self, event: Event) -> None:
        """Open, write or close the trackers of the event's run."""
        job = self._jobs.get(event.name)
        if job is None:
            return
        if isinstance(event, Started):
            settings = trackers.flatten(job.run.model_dump(mode="json"))
            run = TrackedRun(job.work_dir / FOLDER, f"{self._title} {job.name}", event.key, settings)
            opened = self._open[job.name] = {}
            for name in job.compute.log:
                opened[name] = trackers.open_run(name, run)
        elif isinstance(event, EpochDone):
            self._each(job.name, lambda tracker: tracker.log(event.values["epoch"], trackers.curves(event.values)))
        elif isinstance(event, Finished):
            top1 = exported_epoch(record.read_record(job.log, RunLog)).top1
            self._close(job.name, {} if top1 is None else {FINAL: top1}, finished=True)
        elif isinstance(event, Failed):
            self._close(job.name)

    def _close(self, run: str, final: dict[str, float] | None = None, *, finished: bool = False) -> None:
        self._each(run, lambda tracker: tracker.close(final or {}, finished=finished))
        self._open.pop(run, None)

    def _each(self, run: str, act: Callable[[Tracker], None]) -> None:
        opened = self._open.get(run, {})
        for name, tracker in list(opened.items()):
            try:
                act(tracker)
            except Exception as error:  # any library's; it must not end a run
                del opened[name]
                self._show(Note(run, f"log: {name}: {one_line(error) or type(error).__name__}; the run goes on"))


def exported_epoch(log: RunLog) -> Epoch:
    """Return the epoch whose weights are the result of the run."""
    best = record.best_held_out(log.curve) if log.settings.training.early_stop is not None else None
    return best or log.curve[-1]
