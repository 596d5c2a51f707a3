"""Slots in which stages run: a limited number in parallel, each on its GPUs, across all flows of a machine."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import httpx
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError, concurrency

POLL_SECONDS = 2.0  # between two attempts to get free GPUs


class GpuSlots:
    """Limits a flow to `max_parallel` stages in parallel, each on `gpus_per_run` GPUs if the machine has any.

    The GPUs are those of CUDA_VISIBLE_DEVICES if it is set, else all. Flows of one machine share them through a
    concurrency limit of Prefect per GPU.
    """

    def __init__(self, max_parallel: int, gpus_per_run: int) -> None:
        import torch

        self.parallel = asyncio.Semaphore(max_parallel)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = torch.cuda.device_count()
        gpus = visible.split(",")[:count] if visible else [str(gpu) for gpu in range(count)]
        size = min(gpus_per_run, len(gpus)) or 1
        self.groups = [gpus[i : i + size] for i in range(0, len(gpus) - size + 1, size)]

    @staticmethod
    def limit(gpu: str) -> str:
        """Return the name of the concurrency limit of a GPU of this machine."""
        return f"gpu-{socket.gethostname()}-{gpu}"

    async def create(self) -> None:
        """Create the concurrency limit of each GPU, where it does not exist."""
        async with get_client() as client:
            for gpu in itertools.chain(*self.groups):
                await client.upsert_global_concurrency_limit_by_name(self.limit(gpu), 1)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[dict[str, str]]:
        """Wait for a slot and for free GPUs; yields the environment variables that select the GPUs."""
        async with self.parallel, AsyncExitStack() as acquired:
            gpus: list[str] = []
            while self.groups and not gpus:
                for group in self.groups:
                    try:
                        await acquired.enter_async_context(self._acquire(group))
                    except ConcurrencySlotAcquisitionError as error:
                        if not _is_locked(error):
                            raise
                    else:
                        gpus = group
                        break
                else:
                    await asyncio.sleep(POLL_SECONDS)
            yield {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}

    def _acquire(self, gpus: list[str]) -> AbstractAsyncContextManager[None]:
        """Acquire all of some GPUs or none. A stage continues if the server does not answer for a while."""
        return concurrency(
            [self.limit(gpu) for gpu in gpus], strict=True, max_retries=0, raise_on_lease_renewal_failure=False
        )


def _is_locked(error: ConcurrencySlotAcquisitionError) -> bool:
    """Return whether the server refused because another stage has acquired the GPU."""
    cause = error.__cause__
    return isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code == httpx.codes.LOCKED
