"""Progress of runs that train side by side: rich bars on a terminal, plain lines elsewhere. Never imports torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from kdflow.core.errors import UserError

PLAIN_EVERY = 10.0  # seconds between two plain lines of one run


@dataclass(frozen=True)
class StoreProgress:
    """How far a store is, in images."""

    name: str
    done: int
    steps: int
    seconds_left: float | None

    def __str__(self) -> str:
        return f"{self.done:,} of {self.steps:,} images  left {_left(self.seconds_left)}"


@dataclass(frozen=True)
class DownloadProgress:
    """How far a download is, in bytes."""

    name: str
    done: int
    steps: int
    bytes_per_second: float

    def __str__(self) -> str:
        left = _left((self.steps - self.done) / self.bytes_per_second) if self.bytes_per_second else "-"
        speed = f"{self.bytes_per_second / 1e6:,.1f} MB/s"
        return f"{self.done / 1e6:,.1f} of {self.steps / 1e6:,.1f} MB  {speed}  left {left}"


@dataclass(frozen=True)
class RunUpdate:
    """How far a run is. Loss and test accuracy (percent) are the last ones known."""

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
class Finished:
    """A run has written its outputs: its scratch folder is needed no more once its fellows are done too."""

    name: str
    scratch: Path


@dataclass(frozen=True)
class Failed:
    """A run's error, in one line."""

    name: str
    text: str


Event = RunUpdate | Note | Finished | Failed
Emit = Callable[[Event], None]


class Display:
    """Shows every run's latest update; use as a context manager."""

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
    """Tells a display how far a store is; ends it when whoever started this process is gone."""

    def __init__(self, images: int, display: Display) -> None:
        self.images, self.display = images, display
        self.began: tuple[float, int] | None = None
        self.parent = os.getppid()

    def done(self, images: int) -> None:
        """So many images are done."""
        if os.getppid() != self.parent:
            raise UserError("logits: the process that started this one is gone")
        now = time.monotonic()
        began, first = self.began = self.began or (now, images)
        speed = (images - first) / (now - began) if images > first else None  # images a second
        left = None if speed is None else (self.images - images) / speed
        self.display.show(StoreProgress("views", images, self.images, left))


def track(title: str, results: Iterable[int], count: int) -> Iterator[int]:
    """How many images each step did, as they come, shown as progress towards `count`."""
    began, done = time.monotonic(), 0
    with Display("prepare") as display:
        for new in results:
            done += new
            yield new
            display.show(StoreProgress(title, done, count, (time.monotonic() - began) / done * (count - done)))


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
