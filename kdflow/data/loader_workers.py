"""Loader workers: how they start and end, and how many fit in shared memory.

They pass batches on through /dev/shm. Containers often have 64 MB of it.
"""

from __future__ import annotations

import sys
import threading
from functools import cache
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

from kdflow.core.errors import LOADER_HINT, UserError
from kdflow.core.machine import free_shared_memory

PREFETCH = 2  # batches per worker that are prepared ahead, torch's default


def worker_options(workers: int) -> dict[str, Any]:
    """Return the arguments of `DataLoader` that start this number of workers."""
    return {
        "num_workers": workers,
        # A forked worker ends with a killed run; a worker of Python's fork server does not.
        "multiprocessing_context": "fork" if workers and sys.platform == "linux" else None,
        "worker_init_fn": _forget_threads,
    }


def _forget_threads(_worker: int) -> None:
    """Let this worker end without the exit functions of threads, which a forked process does not have.

    Those of Prefect fail there: in a program that has run a flow, each worker would end with exit code 1, and torch
    reports that as a failure of the worker.
    """
    getattr(threading, "_threading_atexits", []).clear()


def fit_workers(workers: int, batch_bytes: int) -> tuple[int, int | None]:
    """Return how many loader workers, and prefetched batches per worker, half of the free shared memory holds.

    The other half is for the other loader of a run and for parallel runs. With 0 workers, the run's process reads the
    files, and the second number is None.
    """
    free = free_shared_memory()
    if not workers or free is None:
        return workers, PREFETCH if workers else None
    batches = max(0, free // 2 // batch_bytes - 1)  # one batch is in use
    prefetch = PREFETCH if batches >= PREFETCH * workers else 1
    fitted = min(workers, batches // prefetch)
    if fitted < workers:
        _warn(free, fitted, workers)
    return fitted, prefetch if fitted else None


@cache  # once per process and size
def _warn(free: int, fitted: int, workers: int) -> None:
    print(
        f"warning: /dev/shm has {free / 1e6:.1f} MB free, enough for {fitted} of {workers} loader workers; "
        "reading is slower (in a container: --shm-size 1g)",
        file=sys.stderr,
    )


def share(batch: Tensor) -> Tensor:
    """Move a batch to shared memory if this is a loader worker.

    torch would do it later in a thread of the worker, where an error loses the batch and the run waits for ever.

    Raises:
        UserError: shared memory is full.
    """
    if get_worker_info() is None:
        return batch
    try:
        batch.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise UserError(f"/dev/shm, the shared memory of loader workers, is full; {LOADER_HINT}") from None
    return batch
