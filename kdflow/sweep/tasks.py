"""Prefect's tasks: DVC stages as processes of this machine, or as runs of a deployment on workers."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelling
from prefect.tasks import Task, exponential_backoff
from pydantic import Field

from kdflow.config import Settings
from kdflow.core.errors import FAILURE_FILE, UserError, read_failure
from kdflow.sweep import dvc_graph
from kdflow.sweep.dvc_graph import Stage
from kdflow.sweep.gpu_slots import GpuSlots
from kdflow.sweep.processes import NO_TELEMETRY, PID_DIR, run_in_group

IGNORED_LINES = "WARNING: No file hash info found"  # DVC prints it for every missing output of the paper
POLL_SECONDS = 2.0  # between two looks at a flow run on a worker, or at a stage that another process runs


class StageTimeouts(Settings):
    """The timeout of each kind of stage in hours. A stage that exceeds it is ended and not retried."""

    prepare: Annotated[float, Field(gt=0)] = 24
    teacher: Annotated[float, Field(gt=0)] = 240
    logits: Annotated[float, Field(gt=0)] = 72
    distill: Annotated[float, Field(gt=0)] = 720
    cell: Annotated[float, Field(gt=0)] = 720
    variant: Annotated[float, Field(gt=0)] = 720
    others: Annotated[float, Field(gt=0)] = 12

    def seconds(self, kind: str) -> float:
        """Return the timeout of a kind of stage in seconds."""
        return float(getattr(self, kind, self.others)) * 3600


class StageError(Exception):
    """A stage has failed; `retryable`: another attempt may succeed."""

    def __init__(self, name: str, reason: str, *, retryable: bool) -> None:
        super().__init__(f"{name}: {reason}")
        self.retryable = retryable


class _NoTraceback(logging.Filter):
    """Logs the errors of stages and users without a traceback: their message is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], UserError | StageError):
            record.exc_info = None
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_NoTraceback())


# --- one stage ---------------------------------------------------------------------------------------------


async def _is_retryable(_task: Task[..., Any], _run: TaskRun | None, state: State[Any]) -> bool:
    """Return whether another attempt may succeed: after a lock or a crash, not after bad settings or a timeout."""
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, StageError) and error.retryable


@task(
    task_run_name="{name}",
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_jitter_factor=0.5,
    retry_condition_fn=_is_retryable,
)
async def run_stage(name: str, command: Sequence[str], environment: dict[str, str]) -> None:
    """Run a DVC command; interrupted training resumes from its checkpoint.

    DVC ends with the same exit code whatever a stage's exit code was, so a stage writes the error that ends it to a
    file that the environment names, and DVC hands the environment on. What a stage or DVC prints decides nothing: its
    wording may change. Without such a file the stage was killed, has a defect, or DVC itself failed: it is run again.

    Raises:
        StageError: the command failed. The message has the error of the stage, or else the last error that was printed.
    """
    logger, lines = get_run_logger(), list[str]()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "failure.json"
        everything = {**os.environ, **NO_TELEMETRY, **environment, "PATH": path, FAILURE_FILE: str(file)}
        async with run_in_group(command, PID_DIR, name, str(flow_run.get_id()), Path(), everything) as child:
            assert child.stdout is not None
            async for raw in child.stdout:
                line = raw.decode(errors="replace").rstrip()
                if line and not line.startswith(IGNORED_LINES):
                    logger.info(line)
                    lines = [*lines[-30:], line]
            code = await child.wait()
        failure = read_failure(file)
    if code:
        errors = [line for line in lines if line.startswith("ERROR: ")]  # of DVC
        reason = str(failure) if failure else (errors or lines or [f"exit code {code}"])[-1]
        raise StageError(name, reason, retryable=code < 0 or failure is None or failure.retryable)


async def is_busy(project: Path | None, stage_names: Sequence[str]) -> bool:
    """Return whether another process, such as a sweep in the same folder, uses inputs or outputs of stages."""
    return project is not None and await asyncio.to_thread(dvc_graph.is_busy, project, stage_names)


# --- all stages --------------------------------------------------------------------------------------------

# Runs a stage, given the states of the stages that it needs, and returns its state.
StageRunner = Callable[[Stage, list[State[Any]]], Awaitable[State[Any]]]


async def _run_in_order(stages: Sequence[Stage], runner: StageRunner) -> None:
    """Run every stage as soon as the stages that it needs are done; after a failure the others continue.

    Raises:
        StageError: stages failed, or did not run because of that.
    """
    text = f"{len(stages)} stages" if stages else "everything is up to date"
    progress = await acreate_progress_artifact(progress=0.0 if stages else 100.0, key="progress", description=text)
    started: dict[str, asyncio.Task[State[Any] | None]] = {}
    done = 0

    async def run(stage: Stage) -> State[Any] | None:
        nonlocal done
        needed = [await started[need] for need in stage.needs]
        completed = [state for state in needed if state is not None and state.is_completed()]
        state = await runner(stage, completed) if len(completed) == len(needed) else None
        done += 1
        if isinstance(progress, UUID):
            with suppress(httpx.HTTPError):  # the progress is for display only
                await aupdate_progress_artifact(artifact_id=progress, progress=round(100 * done / len(stages), 1))
        return state

    async with asyncio.TaskGroup() as group:
        for stage in stages:
            started[stage.name] = group.create_task(run(stage))
    states = [started[stage.name].result() for stage in stages]
    failed = [f"{state.message}" for state in states if state is not None and not state.is_completed()]
    skipped = states.count(None)
    if failed:
        more = f"; {skipped} that need them did not run" if skipped else ""
        raise StageError(f"{len(failed)} of {len(stages)} stages failed{more}", "; ".join(failed), retryable=False)


async def run_local(
    stages: Sequence[Stage],
    command: Callable[[Stage], Sequence[str]],
    max_parallel: int,
    timeouts: StageTimeouts,
    gpus_per_run: int = 1,
    *,
    project: Path | None,
) -> None:
    """Run stages in this clone, each by its command, and each on `gpus_per_run` GPUs if the machine has any.

    `project` is the DVC project of the stages: a stage that another process runs is awaited. None: they are no stages
    of DVC.

    Raises:
        StageError: stages failed, or did not run because of that.
    """
    slots = GpuSlots(max_parallel, gpus_per_run)
    await slots.create()

    async def run(stage: Stage, needed: list[State[Any]]) -> State[Any]:
        limited = run_stage.with_options(timeout_seconds=timeouts.seconds(stage.kind))
        waits = False
        while True:
            async with slots.slot() as environment:
                if not await is_busy(project, [stage.name]):
                    state = await limited(stage.name, command(stage), environment, wait_for=needed, return_state=True)  # type: ignore[misc]
                    failed = not state.is_completed() and await _is_retryable(run_stage, None, state)
                    if not (failed and await is_busy(project, [stage.name])):  # begun by another process in between
                        return state  # type: ignore[no-any-return]
            if not waits:
                get_run_logger().info("%s: waits for another process that uses its files", stage.name)
            waits = True
            await asyncio.sleep(POLL_SECONDS)

    await _run_in_order(stages, run)


async def run_on_workers(
    stages: Sequence[Stage], deployment: str, parameters: dict[str, Any], max_parallel: int
) -> None:
    """Run stages on workers, in clones of their machines: each is a run of `deployment` with the stage as target.

    Raises:
        StageError: stages failed, or did not run because of that.
    """
    slots = asyncio.Semaphore(max_parallel)

    async def run(stage: Stage, needed: list[State[Any]]) -> State[Any]:
        target = stage.name.rpartition(":")[2]
        async with slots:
            with_target = {**parameters, "targets": [target]}
            return await run_deployment(target, deployment, with_target, wait_for=needed, return_state=True)  # type: ignore[misc, no-any-return]

    await _run_in_order(stages, run)


async def _server_failed(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether the error is one of Prefect's server: it was busy or did not answer."""
    return isinstance(await state.aresult(raise_on_failure=False), httpx.HTTPError)


@task(task_run_name="{name}", retries=5, retry_delay_seconds=exponential_backoff(5), retry_condition_fn=_server_failed)
async def run_deployment(name: str, deployment: str, parameters: dict[str, Any]) -> None:
    """Run a deployment and wait for its end, at most twice. When this task is cancelled, so is the run.

    Raises:
        StageError: the run did not complete.
    """
    for attempt in (1, 2):
        # If the server's response is lost, the key finds the run that was created. A second run would compute the same
        # on another worker, and DVC takes a teacher that was trained twice for two teachers.
        try:
            state = await _run_to_final_state(deployment, parameters, f"{task_run.get_id()}-{attempt}")
        except ObjectNotFound:
            raise StageError(name, "its run was deleted", retryable=False) from None
        if state.is_completed():
            return
        if state.is_cancelled():
            break
    raise StageError(name, state.message or str(state.name), retryable=False)


async def require_deployment(deployment: str) -> None:
    """Check that Prefect has a deployment.

    Raises:
        UserError: it has none of this name.
    """
    async with get_client() as client:
        try:
            await client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            raise UserError(
                f"deployment: unknown deployment {deployment!r}; `prefect deployment ls` lists all"
            ) from None


async def _run_to_final_state(deployment: str, parameters: dict[str, Any], key: str) -> State[Any]:
    """Create a run of a deployment, unless one with this idempotency key exists, and wait for its final state."""
    run = await arun_deployment(deployment, parameters=parameters, timeout=0, idempotency_key=key)
    async with get_client() as client:
        try:
            while run.state is None or not run.state.is_final():
                await asyncio.sleep(POLL_SECONDS)
                run = await client.read_flow_run(run.id)
        except asyncio.CancelledError:
            await asyncio.shield(client.set_flow_run_state(run.id, Cancelling(), force=True))
            raise
    return run.state
