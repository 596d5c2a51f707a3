"""The processes of flow runs and of their commands, each with a file, so that the next flow can end orphans.

The system gives process numbers again, so a process is identified by its number and its start time. A command runs in a
process group of its flow run.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import ClassVar, TypeVar

import anyio
import psutil

from kdflow.config import Settings
from kdflow.core.errors import UserError
from kdflow.training import record

PID_DIR = Path(".kdflow/prefect")
NO_TELEMETRY = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
KILL_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
MAX_LINE = 2**20  # bytes of the longest line that is read from a command
# Seconds by which two readings of the same start time may differ: the boot time is rounded, and clocks are adjusted.
START_TIME_TOLERANCE = 2.0


class Process(Settings):
    """A process of this machine. `start_time` is in seconds since the epoch."""

    pid: int
    start_time: float

    @property
    def alive(self) -> bool:
        """True while this process is running; a later process with the same number does not count."""
        current = find_process(self.pid)
        return current is not None and abs(current.start_time - self.start_time) < START_TIME_TOLERANCE

    def end(self) -> bool:
        """End the process; returns whether it was running."""
        return _end(lambda: [self] if self.alive else [])


class Group(Settings):
    """The process group of a command. `description` names the command, `flow_run` is the id of its flow run."""

    FOLDER: ClassVar[str] = "groups"

    leader: Process
    description: str
    flow_run: str

    @property
    def members(self) -> list[Process]:
        """The running processes of the group, also after the leader has ended.

        The list is empty when another group has the same number: its leader is another process, or one of its members
        is older than the leader of this group.
        """
        running = [
            process for pid in psutil.pids() if _group_of(pid) == self.leader.pid and (process := find_process(pid))
        ]
        reused = any(
            (process.pid == self.leader.pid and not self.leader.alive)
            or process.start_time < self.leader.start_time - START_TIME_TOLERANCE
            for process in running
        )
        return [] if reused else running

    def end(self) -> bool:
        """End all processes of the group; returns whether any was running."""
        return _end(lambda: self.members)


class FlowRunProcess(Settings):
    """The process of a flow run, and the worker that started it; None without a worker."""

    FOLDER: ClassVar[str] = "flow_runs"

    flow_run: str
    flow: str
    process: Process
    worker: Process | None

    @property
    def orphaned(self) -> bool:
        """True if the process or its worker has ended: Prefect then learns nothing more about the flow run."""
        return not self.process.alive or (self.worker is not None and not self.worker.alive)


def find_process(pid: int) -> Process | None:
    """Return the running process with a number, or None; a zombie is not running."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return Process(pid=pid, start_time=process.create_time())
    except psutil.NoSuchProcess:
        return None


def _end(running: Callable[[], list[Process]]) -> bool:
    """Send SIGTERM to all processes, then SIGKILL to those that still run after KILL_GRACE seconds."""
    any_running = bool(running())
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for process in running():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal_number)
        deadline = time.monotonic() + KILL_GRACE
        while running() and time.monotonic() < deadline:
            time.sleep(0.05)
    return any_running


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


K = TypeVar("K", FlowRunProcess, Group)


def read_pid_files(folder: Path, kind: type[K]) -> dict[Path, K]:
    """Return the content of all files of a kind below `folder`, by file."""
    content = {}
    for file in sorted((folder / kind.FOLDER).glob("*.json")):
        with suppress(UserError):  # removed meanwhile, or written by another version
            content[file] = record.read_record(file, kind)
    return content


@contextmanager
def pid_file(folder: Path, content: FlowRunProcess | Group, name: str) -> Iterator[None]:
    """Keep a file about a process while the block runs. After a kill -9 the file remains."""
    file = folder / content.FOLDER / f"{name}.json"
    record.write_record(file, content)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@asynccontextmanager
async def run_in_group(
    command: Sequence[str], folder: Path, description: str, flow_run: str, cwd: Path, environment: dict[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a command in a new process group; the group is ended when the block is left in any way.

    The caller reads the output, stdout and stderr together. `folder` is the folder of the PID files.
    """
    child = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        limit=MAX_LINE,
    )
    leader = find_process(child.pid) or Process(pid=child.pid, start_time=time.time())  # it may have ended already
    group = Group(leader=leader, description=description, flow_run=flow_run)
    with pid_file(folder, group, str(child.pid)):
        try:
            yield child
        finally:
            # A timeout of Prefect cancels again and again; the file must stay until the group has ended.
            with anyio.CancelScope(shield=True):
                await asyncio.shield(asyncio.to_thread(group.end))
