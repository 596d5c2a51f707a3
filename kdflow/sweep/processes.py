"""Processes that this project has started, each with a file that says so: what is left of them can be ended.

A process is known by its number and by when it began, as numbers are given again. A command runs as a group of its own;
whoever starts it is its owner.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import anyio
import psutil

from kdflow.config import Settings
from kdflow.core.errors import UserError
from kdflow.training import record

PID_DIR = Path(".kdflow/prefect")
NO_TELEMETRY = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
KILL_GRACE = 10.0  # seconds that a group has to end itself
LINE = 2**20  # bytes of the longest line that is read from a group
JITTER = 2.0  # seconds by which two processes may read the same start: the time of boot is rounded, clocks are set


class Process(Settings):
    """A process of this machine; `began` in seconds since the epoch."""

    pid: int
    began: float

    @property
    def alive(self) -> bool:
        """Whether it is this very process that lives."""
        found = process(self.pid)
        return found is not None and abs(found.began - self.began) < JITTER

    def end(self) -> bool:
        """End it; whether it was there."""
        return _end(lambda: [self] if self.alive else [])


class Group(Settings):
    """A group, by its leader: what it does, and for which flow run."""

    leader: Process
    what: str
    run: str

    @property
    def members(self) -> list[Process]:
        """Who lives of it, the leader or what it left; nobody where its number has been given to another group."""
        found = [one for pid in psutil.pids() if _group(pid) == self.leader.pid and (one := process(pid))]
        others = [
            one
            for one in found
            if (one.pid == self.leader.pid and not self.leader.alive) or one.began < self.leader.began - JITTER
        ]
        return [] if others else found

    def end(self) -> bool:
        """End all of it; whether anybody was there."""
        return _end(lambda: self.members)


def process(pid: int) -> Process | None:
    """The process of this number, if it lives: a zombie does not."""
    try:
        found = psutil.Process(pid)
        return Process(pid=pid, began=found.create_time()) if found.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _end(living: Callable[[], list[Process]]) -> bool:
    """Ask all to end, then make those that have not."""
    there = bool(living())
    for how in (signal.SIGTERM, signal.SIGKILL):
        for one in living():
            with suppress(ProcessLookupError):
                os.kill(one.pid, how)
        until = time.monotonic() + KILL_GRACE
        while living() and time.monotonic() < until:
            time.sleep(0.05)
    return there


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


class FlowRunProcess(Settings):
    """A flow run, its process, and the worker that started it, if one did."""

    run: str
    flow: str
    process: Process
    worker: Process | None

    @property
    def lost(self) -> bool:
        """Whether nobody watches over it any more."""
        return not self.process.alive or (self.worker is not None and not self.worker.alive)


K = TypeVar("K", FlowRunProcess, Group)


def read_pid_files(folder: Path, kind: type[K]) -> dict[Path, K]:
    """All of a kind that have a file in `folder`."""
    found = {}
    for file in sorted((folder / kind.__name__.lower()).glob("*.json")):
        with suppress(UserError):  # gone meanwhile
            found[file] = record.read_record(file, kind)
    return found


@contextmanager
def pid_file(folder: Path, one: FlowRunProcess | Group, name: str) -> Iterator[None]:
    """Keep a file about a process while the block runs; what a killed one leaves stays."""
    file = folder / type(one).__name__.lower() / f"{name}.json"
    record.write_record(file, one)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@asynccontextmanager
async def run_in_group(
    command: Sequence[str], folder: Path, what: str, run: str, cwd: Path, environment: dict[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a command as a group of its own, with its output to be read; however this ends, so does the group."""
    child = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        limit=LINE,
    )
    leader = process(child.pid) or Process(pid=child.pid, began=time.time())  # it may have ended already
    group = Group(leader=leader, what=what, run=run)
    with pid_file(folder, group, str(child.pid)):
        try:
            yield child
        finally:
            # A timeout of Prefect's cancels again and again, and the note is to stay until the group is gone.
            with anyio.CancelScope(shield=True):
                await asyncio.shield(asyncio.to_thread(group.end))
