"""Clean-up after flow runs whose process or worker has ended without reporting it to Prefect."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from prefect import get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelling, Crashed

from kdflow.sweep.processes import (
    NO_TELEMETRY,
    PID_DIR,
    FlowRunProcess,
    Group,
    find_process,
    pid_file,
    read_pid_files,
)


@task(task_run_name="end orphans")
async def end_orphans() -> None:
    """End the processes of orphaned flow runs in this folder, and set their state in Prefect to crashed."""
    logger = get_run_logger()
    for file, run in read_pid_files(PID_DIR, FlowRunProcess).items():
        if run.orphaned:
            cause = "the worker has ended" if run.process.alive else "the process has ended"
            logger.warning("%s %s: orphaned flow run: %s", run.flow, run.flow_run, cause)
            await asyncio.to_thread(run.process.end)
            await _set_crashed(run.flow_run)
            file.unlink(missing_ok=True)
    living = {run.flow_run for run in read_pid_files(PID_DIR, FlowRunProcess).values()}
    for file, group in read_pid_files(PID_DIR, Group).items():
        if group.flow_run not in living:
            if await asyncio.to_thread(group.end):
                logger.warning("%s: still ran for a flow run that has ended; ended", group.description)
            file.unlink(missing_ok=True)


async def _set_crashed(flow_run_id: str) -> None:
    """Set a flow run and its task runs to crashed, and cancel the flow runs that it has started on workers."""
    crashed: State[Any] = Crashed(message="the process of this flow run, or its worker, has ended")
    async with get_client() as client:
        try:
            run = await client.read_flow_run(UUID(flow_run_id))
        except ObjectNotFound:  # a flow run of another server
            return
        if run.state is None or not run.state.is_final():
            await client.set_flow_run_state(run.id, crashed, force=True)
        tasks = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        for task_run in tasks:
            if task_run.state is None or not task_run.state.is_final():
                await client.set_task_run_state(task_run.id, crashed, force=True)
        children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
        for child in await client.read_flow_runs(flow_run_filter=children):  # the next sweep starts them again
            if child.state is None or not child.state.is_final():
                await client.set_flow_run_state(
                    child.id, Cancelling()
                )  # Prefect makes it Cancelled if none has begun it


@asynccontextmanager
async def registered_flow_run() -> AsyncIterator[None]:
    """Keep a file about this flow run while the block runs, after ending the orphans of earlier flow runs."""
    os.environ.update(NO_TELEMETRY)
    worker = find_process(os.getppid()) if os.environ.get("PREFECT__WORKER_NAME") else None
    process = find_process(os.getpid())
    assert process is not None
    run = FlowRunProcess(
        flow_run=str(flow_run.get_id()), flow=str(flow_run.get_flow_name()), process=process, worker=worker
    )
    with pid_file(PID_DIR, run, run.flow_run):
        await end_orphans()
        yield
