"""Progress of runs and downloads: rich bars on a terminal, plain lines in a file or pipe. Never imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

PLAIN_EVERY = 10.0  # seconds between two plain lines of one run


class Pace:
    """The speed of a process that counts something, measured from its first count on."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._first: tuple[float, int] | None = None
        self._now = 0.0

    def update(self, done: int) -> None:
        """Set the count."""
        self.done, self._now = done, time.monotonic()
        if self._first is None:
            self._first = (self._now, done)

    @property
    def seconds(self) -> float:
        """Seconds between the first count and the last."""
        return 0.0 if self._first is None else self._now - self._first[0]

    @property
    def per_second(self) -> float:
        """Counts per second; 0 before the second count."""
        return 0.0 if self._first is None or self.seconds == 0 else (self.done - self._first[1]) / self.seconds

    @property
    def seconds_left(self) -> float | None:
        """Seconds until `total` at this speed; None while the speed is unknown."""
        return (self.total - self.done) / self.per_second if self.per_second > 0 else None


@dataclass(frozen=True)
class StoreProgress:
    """Progress of work on images, such as filling a store."""

    name: str
    done: int
    steps: int
    seconds_left: float | None

    def __str__(self) -> str:
        return f"{self.done:,} of {self.steps:,} images  left {_left(self.seconds_left)}"


@dataclass(frozen=True)
class DownloadProgress:
    """Progress of a download, in bytes."""

    name: str
    done: int
    steps: int
    bytes_per_second: float
    seconds_left: float | None

    def __str__(self) -> str:
        speed, left = f"{self.bytes_per_second / 1e6:,.1f} MB/s", _left(self.seconds_left)
        return f"{self.done / 1e6:,.1f} of {self.steps / 1e6:,.1f} MB  {speed}  left {left}"


@dataclass(frozen=True)
class RunUpdate:
    """Progress of a run, in steps. `loss` and `top1` (percent) are the last known values."""

    name: str
    done: int
    steps: int
    epoch: int
    loss: float | None
    top1: float | None
    images_per_second: float
    seconds_left: float | None

    def __str__(self) -> str:
        loss = "-" if self.loss is None else f"{self.loss:.4f}"
        top1 = "-" if self.top1 is None else f"{self.top1:.2f} %"
        speed, left = f"{self.images_per_second:,.0f} images/s", _left(self.seconds_left)
        return f"epoch {self.epoch}  loss {loss}  test {top1}  {speed}  left {left}"


@dataclass(frozen=True)
class Note:
    """A remark about a run."""

    name: str
    text: str


@dataclass(frozen=True)
class Started:
    """The start of a run, or its resumption; `key` identifies the run by all that decides its numbers."""

    name: str
    key: str


@dataclass(frozen=True)
class EpochDone:
    """The record of an epoch, by its keys. A resumed run first sends its earlier epochs."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Finished:
    """A run has written its outputs. Its scratch folder can go once the other runs are finished too."""

    name: str
    scratch: Path


@dataclass(frozen=True)
class Failed:
    """The error of a run, in one line."""

    name: str
    text: str
    retryable: bool


Event = RunUpdate | Note | Started | EpochDone | Finished | Failed
Emit = Callable[[Event], None]


class Display:
    """Shows the latest update of every run. Use it as a context manager."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console()
        self.bars = Progress(
            TextColumn("{task.fields[label]}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %  {task.description}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.printed: dict[str, float] = {}

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def show(self, event: RunUpdate | StoreProgress | DownloadProgress | Note) -> None:
        """Show an event of a run."""
        label = f"{self.title} {event.name}"
        if isinstance(event, Note):
            self._line(f"{label}: {event.text}")
        elif self.console.is_terminal:
            if event.name not in self.tasks:
                self.tasks[event.name] = self.bars.add_task("", total=event.steps, label=label)
            self.bars.update(self.tasks[event.name], completed=event.done, description=str(event))
        else:
            now = time.monotonic()
            if event.done == event.steps or now - self.printed.get(event.name, -PLAIN_EVERY) >= PLAIN_EVERY:
                self.printed[event.name] = now
                self._line(f"{label}  {100 * event.done / event.steps:3.0f} %  {event}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class StoreMeter:
    """Shows the progress of a store."""

    def __init__(self, images: int, display: Display) -> None:
        self.pace, self.display = Pace(images), display

    def done(self, images: int) -> None:
        """Show that `images` images are done."""
        self.pace.update(images)
        self.display.show(StoreProgress("views", images, self.pace.total, self.pace.seconds_left))


def track(title: str, results: Iterable[int], count: int) -> Iterator[int]:
    """Yield from `results`, the number of images of each step, and show the progress towards `count` images."""
    pace = Pace(count)
    pace.update(0)
    with Display("prepare") as display:
        for images in results:
            yield images
            pace.update(pace.done + images)
            display.show(StoreProgress(title, pace.done, count, pace.seconds_left))


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
