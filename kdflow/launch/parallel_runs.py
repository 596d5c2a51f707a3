"""Runs in parallel, each in a process with its threads. Never imports torch in this process.

The processes end with this one. A run that fails does not end the others.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from kdflow.core.errors import UserError, is_retryable, user_message
from kdflow.core.machine import usable_cpus, use_short_socket_folder
from kdflow.core.parent import end_with_parent
from kdflow.core.progress import Display, Failed, Finished, Note, RunUpdate
from kdflow.core.source import same_source
from kdflow.launch.tracking import Tracking
from kdflow.training.job import Job

P = ParamSpec("P")
R = TypeVar("R")

# By default glibc returns the memory of each batch to the kernel and gets it again page by page, which takes a fifth of
# the time of a small model. With these settings it keeps the memory; 32 MiB is the largest value of the first.
MALLOC_ENV = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


def run_parallel(title: str, jobs: Sequence[Job], max_parallel: int | None) -> None:
    """Run all jobs, at most `max_parallel` in parallel (None: two per usable CPU), and show their progress.

    Raises:
        UserError: jobs failed; the message has a line per reason. The other jobs have finished.
    """
    limit = max_parallel or default_parallel_runs()
    waiting, running = list(jobs), dict[Any, BaseProcess]()
    results: dict[str, Failed | Finished] = {}
    os.environ.update(MALLOC_ENV | os.environ)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM as Ctrl-C: the runs are ended first
    with ExitStack() as stack:
        display = stack.enter_context(Display(title))
        tracking = stack.enter_context(Tracking(title, jobs, display.show))
        stack.callback(_kill, running)  # first of all at the end
        while waiting or running:
            while waiting and len(running) < limit:
                connection, process = _start(waiting.pop(0))
                running[connection] = process
            ready: list[Any] = wait(list(running))
            for receiver in ready:
                try:
                    event = receiver.recv()
                except EOFError:  # the process has ended
                    process = running.pop(receiver)
                    # Without a result it was killed or could not start, which is not the fault of its settings.
                    failure = Failed(process.name, _exit_reason(process), retryable=True)
                    results.setdefault(process.name, failure)
                    continue
                tracking.follow(event)
                if isinstance(event, Failed | Finished):
                    results[event.name] = event
                elif isinstance(event, RunUpdate | Note):
                    display.show(event)
    _raise_failures(title, [result for result in results.values() if isinstance(result, Failed)])
    for result in results.values():
        assert isinstance(result, Finished)
        shutil.rmtree(result.scratch, ignore_errors=True)


def _kill(running: Mapping[Any, BaseProcess]) -> None:
    for process in running.values():
        process.kill()  # checkpoints are written atomically
        process.join()


def default_parallel_runs() -> int:
    """Return the default limit of parallel runs: two per usable CPU."""
    return 2 * usable_cpus()


def _raise_failures(title: str, failures: list[Failed]) -> None:
    names_by_text: dict[str, list[str]] = {}  # all seeds may fail for the same reason
    for failure in failures:
        names_by_text.setdefault(failure.text, []).append(failure.name)
    if failures:
        lines = [f"{title} {', '.join(sorted(names))}: {text}" for text, names in names_by_text.items()]
        raise UserError("\n".join(lines), retryable=any(failure.retryable for failure in failures))


def in_fresh_process(function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """Call a function in a new process and return its result.

    The process is forked from the same server as the runs, so after a run it need not import torch.

    Raises:
        UserError: the process was killed, or the function raises one.
    """
    with ProcessPoolExecutor(1, _fork_server(), initializer=_follow_parent) as pool:
        try:
            with _without_main():
                future = pool.submit(function, *arguments, **options)
            return future.result()
        except BrokenProcessPool:
            raise UserError("a process was killed; run the same command again", retryable=True) from None


def _fork_server() -> ForkServerContext:
    """Return a context whose server imports torch once; it starts no thread and uses no GPU before it forks."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["kdflow.training.run", "torch._dynamo"])  # the first optimizer imports the latter
    use_short_socket_folder()
    with same_source():
        forkserver.ensure_running()
    return server


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module while a process starts.

    multiprocessing would import it again in the new process. A script without `if __name__ == "__main__"` would start
    its runs once more, and a program from stdin has no file to import. The functions of runs are in modules of kdflow.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start(job: Job) -> tuple[Connection, BaseProcess]:
    """Start the process of a job; returns the connection on which it sends its events, and the process."""
    server = _fork_server()
    receiver, sender = server.Pipe(duplex=False)
    # Not a daemon: a daemon may have no children, and a run may have workers that load its images.
    process = server.Process(target=_child, args=(job.model_dump_json(), sender), name=job.name)
    with _without_main():
        process.start()
    sender.close()  # else the receiver would not notice the end of the process
    return receiver, process


def _follow_parent() -> None:
    """End with the parent and not before it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and the parent ends its processes
    end_with_parent()


def _child(job_json: str, sender: Connection) -> None:
    _follow_parent()
    from kdflow.training.run import run_job

    job = Job.model_validate_json(job_json)

    try:
        run_job(job, sender.send)
    except Exception as error:
        line = user_message(error)
        text = line or f"{type(error).__name__}: {error}"
        sender.send(Failed(job.name, text, retryable=is_retryable(error)))
        if line is None:
            raise  # a defect: print its traceback
        raise SystemExit(1) from None


def _exit_reason(process: BaseProcess) -> str:
    process.join()
    code = process.exitcode or 0
    return "ended by " + (f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
