"""One run after the other, each by several processes together, as torchrun starts them. Never imports torch itself.

`run_all` meets itself: in the stage that DVC started it becomes torchrun's agent and starts the same stage anew, once
a process; there it trains. The processes end with the agent.
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
from kdflow.core.progress import Display, Event, Failed, Finished
from kdflow.core.source import same_source
from kdflow.launch.parallel_runs import MALLOC_ENV
from kdflow.training.job import Job

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torchrun looks for what a process has to say of its end


def started_by_torchrun() -> bool:
    """Whether this is one of torchrun's processes."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def run_with_torchrun(title: str, jobs: Sequence[Job], processes: int) -> None:
    """Run all jobs, each by `processes` at once (or as many as torchrun has started); only the first of them returns.

    Raises:
        UserError: what several processes cannot train.
    """
    if started_by_torchrun():
        processes = int(os.environ["WORLD_SIZE"])
    for job in jobs:
        _check(title, job, processes)
    if started_by_torchrun():
        end_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # by Ctrl-C it ends at once: the agent says so
        _train(title, jobs)
    else:
        _launch(title, jobs, processes)


def _check(title: str, job: Job, processes: int) -> None:
    run, field = job.run, f"params.yaml: compute.processes_per_run: {title}"
    if run.method.loss is not None and run.method.needs_features:
        what = f"{run.method.loss.name} compares the features of a whole batch"
        raise UserError(f"{field}: {what}, of which each process has its share only; take 1")
    if run.teacher_logits != "online":
        raise UserError(f"{field}: logits: {run.teacher_logits} is for runs of one process; take online, or 1")
    if job.compute.device not in ("auto", "cpu"):
        raise UserError(f"{field}: compute.device {job.compute.device} is one device; take auto (a card each) or cpu")
    last = run.train_images % run.training.batch_size or run.training.batch_size
    pick = run.method.strong and run.method.strong.pick
    least = min(last, max(1, int(last * pick.pool * pick.keep + 1e-9))) if pick else last
    if least < processes:
        raise UserError(
            f"{field}: an epoch's last batch ({run.train_images} images by {run.training.batch_size}) learns from only "
            f"{least}, too few for {processes} processes; take at most {least}, or another batch_size"
        )


# --- torchrun's agent --------------------------------------------------------------------------------------------


def _launch(title: str, jobs: Sequence[Job], processes: int) -> NoReturn:
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.update({"OMP_NUM_THREADS": str(jobs[0].compute.threads)} | MALLOC_ENV | os.environ)
    logging.disable(logging.CRITICAL)  # it tells of each process's end, in many lines; one is told below
    try:
        # torchrun itself would leave the files in which processes write the reason of their end.
        with tempfile.TemporaryDirectory() as ends, same_source():
            options = ["--standalone", f"--nproc-per-node={processes}", f"--log-dir={ends}"]
            torchrun.run(torchrun.parse_args([*options, *sys.argv]))  # type: ignore[no-untyped-call]
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        _raise_first_failure(title, error.failures)
        raise SystemExit(1) from None
    raise SystemExit(0)


def _raise_first_failure(title: str, failures: dict[int, Any]) -> None:
    """Of the process that failed first: a process that was killed, or else one that knows why, takes others along."""

    def order(item: tuple[int, Any]) -> tuple[bool, bool, float]:
        said = item[1].error_file_data
        return item[1].exitcode >= 0, "trace" in said, said.get("timestamp", math.inf)

    number, first = min(failures.items(), key=order)
    said = first.error_file_data
    if first.exitcode < 0:
        said = {"message": f"{title}: process {number}: ended by signal {first.signal_name()}", "retryable": True}
    if "trace" in said:
        print(said["trace"], end="", file=sys.stderr)  # a defect of ours: it helps
    if said["message"] != "<NONE>":  # then it had its say
        raise UserError(said["message"], retryable=said.get("retryable", False))


# --- one of its processes ----------------------------------------------------------------------------------------


def _train(title: str, jobs: Sequence[Job]) -> None:
    from kdflow.training import distributed
    from kdflow.training.device import pick_device
    from kdflow.training.run import run_job

    name, done = jobs[0].name, list[Path]()
    try:
        with (
            distributed.process_group(pick_device(jobs[0].compute.device, int(os.environ["LOCAL_RANK"]))),
            Display(title, Console(quiet=distributed.rank() > 0)) as display,
        ):

            def emit(event: Event) -> None:
                if isinstance(event, Finished):
                    done.append(event.scratch)
                elif not isinstance(event, Failed):
                    display.show(event)

            for job in jobs:
                name = job.name
                run_job(job, emit)
            first = distributed.rank() == 0
    except Exception as error:
        line = user_message(error)
        said = {
            "message": f"{title} {name}: {line or f'{type(error).__name__}: {error}'}",
            "retryable": is_retryable(error),
            "timestamp": time.time(),
        }
        if line is None:
            said["trace"] = traceback.format_exc()
        Path(os.environ[ERROR_FILE]).write_text(json.dumps(said))
        os._exit(1)  # at once: a library's own end might wait for the other processes
    if not first:
        raise SystemExit(0)
    for scratch in done:
        shutil.rmtree(scratch, ignore_errors=True)
