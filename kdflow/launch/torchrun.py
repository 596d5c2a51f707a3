"""Runs one after the other, each on several processes that torchrun starts. Imports torch only to start or train.

`run_with_torchrun` is called in two kinds of processes. In the stage that DVC started it becomes torchrun's agent and
starts the same stage again in each process. In those processes it trains. They end with the agent.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from kdflow.core.errors import UserError, is_retryable, user_message
from kdflow.core.parent import end_with_parent
from kdflow.core.progress import Display, Event, Finished, Note, RunUpdate
from kdflow.core.source import same_source
from kdflow.launch.parallel_runs import MALLOC_ENV
from kdflow.launch.tracking import Tracking
from kdflow.training.job import Job

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # the environment variable that names the file for the error of a process


def started_by_torchrun() -> bool:
    """Return whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def run_with_torchrun(title: str, jobs: Sequence[Job], processes: int) -> None:
    """Run all jobs, each on `processes` processes, or on as many as torchrun has started.

    It returns only in the process of rank 0; the others end.

    Raises:
        UserError: the jobs cannot be trained by several processes, or training failed.
    """
    if started_by_torchrun():
        processes = int(os.environ["WORLD_SIZE"])
    for job in jobs:
        _check(title, job, processes)
    if started_by_torchrun():
        end_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once; the agent prints the message
        _train(title, jobs)
    else:
        _launch(title, jobs, processes)


def _check(title: str, job: Job, processes: int) -> None:
    """Refuse settings that `processes` processes cannot train."""
    run, field = job.run, f"params.yaml: compute.processes_per_run: {title}"
    if run.teacher_logits != "online":
        source = f"teacher_logits: {run.teacher_logits}"
        raise UserError(f"{field}: {source} works with one process only; use teacher_logits: online, or 1")
    if job.compute.device not in ("auto", "cpu"):
        device = job.compute.device
        raise UserError(f"{field}: compute.device {device} is a single device; use auto (a GPU per process) or cpu")
    last = run.train_images % run.training.batch_size or run.training.batch_size
    pick = run.method.strong and run.method.strong.pick
    least = min(last, max(1, int(last * pick.pool * pick.keep + 1e-9))) if pick else last
    if least < processes:
        raise UserError(
            f"{field}: the last batch of an epoch ({run.train_images} images, batches of {run.training.batch_size}) "
            f"trains on {least} only, too few for {processes} processes; use at most {least}, or another batch_size"
        )


# --- torchrun's agent --------------------------------------------------------------------------------------------


def _launch(title: str, jobs: Sequence[Job], processes: int) -> NoReturn:
    """Run the command of this process in `processes` processes, and end as they do."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.update({"OMP_NUM_THREADS": str(jobs[0].compute.threads)} | MALLOC_ENV | os.environ)
    logging.disable(logging.CRITICAL)  # it logs many lines for each process that ends; one line is enough
    try:
        # The folder is for the errors of the processes; torchrun does not remove one that it creates.
        with tempfile.TemporaryDirectory() as folder, same_source():
            options = ["--standalone", f"--nproc-per-node={processes}", f"--log-dir={folder}"]
            torchrun.run(torchrun.parse_args([*options, *sys.argv]))  # type: ignore[no-untyped-call]
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        _raise_first_failure(title, error.failures)
        raise SystemExit(1) from None
    raise SystemExit(0)


def _raise_first_failure(title: str, failures: dict[int, Any]) -> None:
    """Raise the failure that caused the others, since one process that ends makes the others fail.

    A killed process comes first, then an error with a message for users, then a traceback; each by its time.
    """

    def order(item: tuple[int, Any]) -> tuple[bool, bool, float]:
        data = item[1].error_file_data
        return item[1].exitcode >= 0, "trace" in data, data.get("timestamp", math.inf)

    rank, first = min(failures.items(), key=order)
    data = first.error_file_data
    if first.exitcode < 0:
        data = {"message": f"{title}: process {rank}: ended by signal {first.signal_name()}", "retryable": True}
    if "trace" in data:
        print(data["trace"], end="", file=sys.stderr)  # a defect
    if data["message"] != "<NONE>":  # torchrun's text for a process without an error file: it has printed its error
        raise UserError(data["message"], retryable=data.get("retryable", False))


# --- a process of torchrun ---------------------------------------------------------------------------------------


def _train(title: str, jobs: Sequence[Job]) -> None:
    """Run all jobs in this process; rank 0 shows their progress."""
    from kdflow.training import distributed
    from kdflow.training.device import pick_device
    from kdflow.training.run import run_job

    name, scratch_folders = jobs[0].name, list[Path]()
    try:
        with (
            distributed.process_group(pick_device(jobs[0].compute.device, int(os.environ["LOCAL_RANK"]))),
            Display(title, Console(quiet=distributed.rank() > 0)) as display,
            Tracking(title, jobs if distributed.rank() == 0 else (), display.show) as tracking,
        ):

            def emit(event: Event) -> None:
                tracking.follow(event)
                if isinstance(event, Finished):
                    scratch_folders.append(event.scratch)
                elif isinstance(event, RunUpdate | Note):
                    display.show(event)

            for job in jobs:
                name = job.name
                run_job(job, emit)
            is_first = distributed.rank() == 0
    except Exception as error:
        line = user_message(error)
        data = {
            "message": f"{title} {name}: {line or f'{type(error).__name__}: {error}'}",
            "retryable": is_retryable(error),
            "timestamp": time.time(),
        }
        if line is None:
            data["trace"] = traceback.format_exc()
        Path(os.environ[ERROR_FILE]).write_text(json.dumps(data))
        os._exit(1)  # at once: libraries may wait for the other processes at exit
    if not is_first:
        raise SystemExit(0)
    for scratch in scratch_folders:
        shutil.rmtree(scratch, ignore_errors=True)
