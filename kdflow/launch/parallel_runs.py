"""Several runs at once, each in a process of its own with its own threads. Never imports torch itself.

The processes end with this one. A run that fails does not end the others.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, ParamSpec, TypeVar

from kdflow.core.errors import UserError, is_retryable, user_message
from kdflow.core.parent import end_with_parent
from kdflow.core.progress import Display, Failed, Finished
from kdflow.core.source import same_source
from kdflow.training.job import Job

P = ParamSpec("P")
R = TypeVar("R")

# glibc gives the memory of each batch back to the kernel and then faults it in again, page by page: a fifth of
# the time of a small model. With these it keeps it (32 MiB is the most that it takes for the first).
MALLOC_ENV = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


def run_parallel(title: str, jobs: Sequence[Job], at_most: int | None) -> None:
    """Run all jobs, `at_most` at a time (None: two per CPU core), and show their progress.

    Raises:
        UserError: one line per reason for which jobs failed; the others have finished.
    """
    limit = at_most or 2 * (os.cpu_count() or 1)
    waiting, running = list(jobs), dict[Any, BaseProcess]()
    ends: dict[str, Failed | Finished] = {}
    os.environ.update(MALLOC_ENV | os.environ)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: clean up, say so, stop
    try:
        with Display(title) as display:
            while waiting or running:
                while waiting and len(running) < limit:
                    connection, process = _start(waiting.pop(0))
                    running[connection] = process
                ready: list[Any] = wait(list(running))
                for receiver in ready:
                    try:
                        event = receiver.recv()
                    except EOFError:  # the process has ended, for good or ill
                        process = running.pop(receiver)
                        # If it has sent no reason of its end, nothing is wrong with its settings: it was killed.
                        ends.setdefault(process.name, Failed(process.name, _end_of(process), retryable=True))
                        continue
                    if isinstance(event, Failed | Finished):
                        ends[event.name] = event
                    else:
                        display.show(event)
    finally:
        for process in running.values():
            process.kill()  # checkpoints are whole at any moment
            process.join()
    _raise_failures(title, ends)
    for end in ends.values():
        assert isinstance(end, Finished)
        shutil.rmtree(end.scratch, ignore_errors=True)


def _raise_failures(title: str, ends: dict[str, Failed | Finished]) -> None:
    failed: dict[str, list[str]] = {}  # what refuses one seed may refuse all: said once
    for end in ends.values():
        if isinstance(end, Failed):
            failed.setdefault(end.text, []).append(end.name)
    if failed:
        lines = [f"{title} {', '.join(sorted(names))}: {text}" for text, names in failed.items()]
        retryable = any(isinstance(end, Failed) and end.retryable for end in ends.values())
        raise UserError("\n".join(lines), retryable=retryable)


def in_fresh_process(function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """Call a function in a process of its own, forked like the runs: after them, it need not wait for torch.

    Raises:
        UserError: the process was ended, or what the function raises.
    """
    with ProcessPoolExecutor(1, _server(), initializer=_follow) as pool:
        try:
            return pool.submit(function, *arguments, **options).result()
        except BrokenProcessPool:
            message = "the process that measures was ended; the same command measures again"
            raise UserError(message, retryable=True) from None


def _server() -> ForkServerContext:
    # A server imports torch once and forks into every run, before any of them starts a thread or touches a GPU.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["kdflow.training.run", "torch._dynamo"])  # the latter by the first optimizer, in 2 s
    with same_source():
        forkserver.ensure_running()
    return server


def _start(job: Job) -> tuple[Connection, BaseProcess]:
    server = _server()
    receiver, sender = server.Pipe(duplex=False)
    # No daemon: those may have no children, and a run may have workers that read its images.
    process = server.Process(target=_child, args=(job.model_dump_json(), sender), name=job.name)
    process.start()
    sender.close()  # so that the receiver sees the end when the child ends
    return receiver, process


def _follow() -> None:
    """End with the parent, and only with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    end_with_parent()


def _child(job_json: str, sender: Connection) -> None:
    _follow()
    from kdflow.training.run import run_job

    job = Job.model_validate_json(job_json)

    try:
        run_job(job, sender.send)
    except Exception as error:
        line = user_message(error)
        text = line or f"{type(error).__name__}: {error}"
        sender.send(Failed(job.name, text, retryable=is_retryable(error)))
        if line is None:
            raise  # a defect of ours: its traceback helps
        raise SystemExit(1) from None


def _end_of(process: BaseProcess) -> str:
    process.join()
    code = process.exitcode or 0
    return "ended by " + (f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
