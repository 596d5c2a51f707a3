"""Batches in shared memory, /dev/shm, through which loader workers pass them on. Containers often have 64 MB of it."""

from __future__ import annotations

import sys
from functools import cache

from torch import Tensor
from torch.utils.data import get_worker_info

from kdflow.core.errors import LOADER_HINT, UserError
from kdflow.core.machine import free_shared_memory

PREFETCH = 2  # batches per worker that are prepared ahead, torch's default


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
