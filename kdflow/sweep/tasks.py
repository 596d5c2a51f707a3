"""Prefect's tasks: stages of DVC, each in a process group of its own, in the order that DVC's graph asks for."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError, concurrency
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelling, Crashed
from prefect.tasks import Task, exponential_backoff
from pydantic import Field

from kdflow.config import Settings
from kdflow.core.errors import FAILURE_FILE, UserError, read_failure
from kdflow.sweep import processes
from kdflow.sweep.dvc_graph import Stage
from kdflow.sweep.processes import NO_TELEMETRY, PID_DIR

DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")
IGNORED_LINES = "WARNING: No file hash info found"  # for every output of the paper that nobody has made
POLL_SECONDS = 2.0  # seconds between two looks at a run elsewhere, or for a free card


class StageTimeouts(Settings):
    """How long a stage of a kind may take at most, in hours, before it is ended; it is not tried again."""

    prepare: Annotated[float, Field(gt=0)] = 24
    teacher: Annotated[float, Field(gt=0)] = 240
    logits: Annotated[float, Field(gt=0)] = 72
    distill: Annotated[float, Field(gt=0)] = 720
    cell: Annotated[float, Field(gt=0)] = 720
    variant: Annotated[float, Field(gt=0)] = 720
    others: Annotated[float, Field(gt=0)] = 12

    def seconds(self, kind: str) -> float:
        """Of a kind of stage."""
        return float(getattr(self, kind, self.others)) * 3600


class StageError(Exception):
    """A stage has failed; `retryable`: another attempt may succeed."""

    def __init__(self, name: str, reason: str, *, retryable: bool) -> None:
        super().__init__(f"{name}: {reason}")
        self.retryable = retryable


class _Plain(logging.Filter):
    """What was said in a line needs no traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], UserError | StageError):
            record.exc_info = None
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_Plain())


# --- one stage ---------------------------------------------------------------------------------------------


async def _is_retryable(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
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
    """Run a command of DVC; training that was interrupted resumes from its checkpoint.

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
        async with processes.run_in_group(command, PID_DIR, name, str(flow_run.get_id()), Path(), everything) as child:
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


# --- all of them -------------------------------------------------------------------------------------------


class GpuSlots:
    """Where stages run, so many at once: each on cards of its own, where there are any."""

    def __init__(self, at_once: int, cards_each: int) -> None:
        import torch

        self.places = asyncio.Semaphore(at_once)
        ours = os.environ.get("CUDA_VISIBLE_DEVICES")  # of a machine's cards those that we were given, by its numbers
        count = torch.cuda.device_count()
        cards = ours.split(",")[:count] if ours else [str(card) for card in range(count)]
        each = min(cards_each, len(cards)) or 1
        self.groups = [cards[i : i + each] for i in range(0, len(cards) - each + 1, each)]

    @staticmethod
    def limit(card: str) -> str:
        """The name of a card's concurrency limit, by which several flows of this machine share it."""
        return f"gpu-{socket.gethostname()}-{card}"

    async def create(self) -> None:
        """Make a limit of one for each card, where Prefect has none."""
        async with get_client() as client:
            for card in itertools.chain(*self.groups):
                await client.upsert_global_concurrency_limit_by_name(self.limit(card), 1)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[dict[str, str]]:
        """Wait for a place, and for cards that are free; yields their environment."""
        async with self.places, AsyncExitStack() as held:
            cards: list[str] = []
            while self.groups and not cards:
                for group in self.groups:
                    try:
                        await held.enter_async_context(self._taken(group))
                    except ConcurrencySlotAcquisitionError as error:
                        if not _is_busy(error):
                            raise
                    else:
                        cards = group
                        break
                else:
                    await asyncio.sleep(POLL_SECONDS)
            yield {"CUDA_VISIBLE_DEVICES": ",".join(cards)} if cards else {}

    def _taken(self, cards: list[str]) -> AbstractAsyncContextManager[None]:
        """All of some cards or none; a stage goes on where the server is not there for a while."""
        return concurrency(
            [self.limit(card) for card in cards], strict=True, max_retries=0, raise_on_lease_renewal_failure=False
        )


def _is_busy(error: ConcurrencySlotAcquisitionError) -> bool:
    why = error.__cause__
    return isinstance(why, httpx.HTTPStatusError) and why.response.status_code == httpx.codes.LOCKED


Run = Callable[[Stage, list[State[Any]]], Awaitable[State[Any]]]


async def _in_order(stages: Sequence[Stage], run: Run) -> None:
    """Run every stage as soon as those that it needs are done; a failure stops only what hangs on it.

    Raises:
        StageError: some failed, or were not run for that.
    """
    told = f"{len(stages)} stages" if stages else "all is up to date"
    progress = await acreate_progress_artifact(progress=0.0 if stages else 100.0, key="progress", description=told)
    begun: dict[str, asyncio.Task[State[Any] | None]] = {}
    done = 0

    async def one(stage: Stage) -> State[Any] | None:
        nonlocal done
        before = [await begun[need] for need in stage.needs]
        states = [state for state in before if state is not None and state.is_completed()]
        state = await run(stage, states) if len(states) == len(before) else None
        done += 1
        if isinstance(progress, UUID):
            with suppress(httpx.HTTPError):  # it is only shown
                await aupdate_progress_artifact(artifact_id=progress, progress=round(100 * done / len(stages), 1))
        return state

    async with asyncio.TaskGroup() as group:
        for stage in stages:
            begun[stage.name] = group.create_task(one(stage))
    ends = {name: task.result() for name, task in begun.items()}
    failed = [f"{state.message}" for state in ends.values() if state is not None and not state.is_completed()]
    left = sum(state is None for state in ends.values())
    if failed:
        more = f"; {left} that need them were not run" if left else ""
        raise StageError(f"{len(failed)} of {len(stages)} stages failed{more}", "; ".join(failed), retryable=False)


async def run_local(
    stages: Sequence[Stage],
    commands: Callable[[Stage], Sequence[str]],
    at_once: int,
    hours: StageTimeouts,
    cards_each: int = 1,
) -> None:
    """Run stages in this clone, each by its command, with so many cards each, where there are any.

    Raises:
        StageError: some failed, or were not run for that.
    """
    slots = GpuSlots(at_once, cards_each)
    await slots.create()

    async def run(one: Stage, before: list[State[Any]]) -> State[Any]:
        limited = run_stage.with_options(timeout_seconds=hours.seconds(one.kind))
        async with slots.slot() as environment:
            return await limited(one.name, commands(one), environment, wait_for=before, return_state=True)  # type: ignore[misc, no-any-return]

    await _in_order(stages, run)


async def run_on_workers(stages: Sequence[Stage], deployment: str, parameters: dict[str, Any], at_once: int) -> None:
    """Have workers run stages in clones of their own, each by a run of `deployment` with it as target.

    Raises:
        StageError: some failed, or were not run for that.
    """
    free = asyncio.Semaphore(at_once)

    async def run(one: Stage, before: list[State[Any]]) -> State[Any]:
        target = one.name.rpartition(":")[2]
        async with free:
            own = {**parameters, "targets": [target]}
            return await run_deployment(target, deployment, own, wait_for=before, return_state=True)  # type: ignore[misc, no-any-return]

    await _in_order(stages, run)


async def _server_failed(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether it was Prefect's server that failed, busy or gone for a while."""
    return isinstance(await state.aresult(raise_on_failure=False), httpx.HTTPError)


@task(task_run_name="{name}", retries=5, retry_delay_seconds=exponential_backoff(5), retry_condition_fn=_server_failed)
async def run_deployment(name: str, deployment: str, parameters: dict[str, Any]) -> None:
    """Run a deployment and wait for its end, a second time if need be; where this is cancelled, so is that.

    Raises:
        StageError: it did not complete.
    """
    for attempt in (1, 2):
        # By its key a run is found again where the server's answer was lost: two workers would do the same otherwise,
        # and a teacher made twice is two teachers to DVC.
        try:
            state = await _end_of(deployment, parameters, f"{task_run.get_id()}-{attempt}")
        except ObjectNotFound:
            raise StageError(name, "its run was deleted", retryable=False) from None
        if state.is_completed():
            return
        if state.is_cancelled():
            break
    raise StageError(name, state.message or str(state.name), retryable=False)


async def require_deployment(deployment: str) -> None:
    """Look whether Prefect has a deployment.

    Raises:
        UserError: it has not.
    """
    async with get_client() as client:
        try:
            await client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            raise UserError(f"spread: no deployment {deployment!r}; `prefect deployment ls` has all") from None


async def _end_of(deployment: str, parameters: dict[str, Any], key: str) -> State[Any]:
    """Have a deployment run unless there is a run of this key; wait for its final state."""
    made = await arun_deployment(deployment, parameters=parameters, timeout=0, idempotency_key=key)
    async with get_client() as client:
        try:
            while made.state is None or not made.state.is_final():
                await asyncio.sleep(POLL_SECONDS)
                made = await client.read_flow_run(made.id)
        except asyncio.CancelledError:
            await asyncio.shield(client.set_flow_run_state(made.id, Cancelling(), force=True))
            raise
    return made.state


# --- recovery ----------------------------------------------------------------------------------------------


@task(task_run_name="reap")
async def end_orphans() -> None:
    """End what flow runs left behind whose process or worker is gone, and have Prefect say that they crashed."""
    logger = get_run_logger()
    for file, run in processes.read_pid_files(PID_DIR, processes.FlowRunProcess).items():
        if run.lost:
            logger.warning(
                "%s %s: lost, with %s", run.flow, run.run, "its worker" if run.process.alive else "its process"
            )
            await asyncio.to_thread(run.process.end)
            await _crashed(run.run)
            file.unlink(missing_ok=True)
    living = {run.run for run in processes.read_pid_files(PID_DIR, processes.FlowRunProcess).values()}
    for file, group in processes.read_pid_files(PID_DIR, processes.Group).items():
        if group.run not in living:
            if await asyncio.to_thread(group.end):
                logger.warning("%s: was still running for a flow run that is gone; ended", group.what)
            file.unlink(missing_ok=True)


async def _crashed(run: str) -> None:
    lost: State[Any] = Crashed(message="the process of this flow run, or its worker, is gone")
    async with get_client() as client:
        try:
            known = await client.read_flow_run(UUID(run))
        except ObjectNotFound:  # of another server
            return
        if known.state is None or not known.state.is_final():
            await client.set_flow_run_state(known.id, lost, force=True)
        tasks = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[known.id])))
        for one in tasks:
            if one.state is None or not one.state.is_final():
                await client.set_task_run_state(one.id, lost, force=True)
        asked = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[known.id]))
        for other in await client.read_flow_runs(flow_run_filter=asked):  # elsewhere; the next sweep asks for it again
            if other.state is None or not other.state.is_final():
                await client.set_flow_run_state(other.id, Cancelling())  # or Cancelled at once, where it has not begun


@asynccontextmanager
async def registered_flow_run() -> AsyncIterator[None]:
    """Note this flow run, so that it is found should it be lost; first look for such."""
    os.environ.update(NO_TELEMETRY)
    worker = processes.process(os.getppid()) if os.environ.get("PREFECT__WORKER_NAME") else None
    own = processes.process(os.getpid())
    assert own is not None
    run = processes.FlowRunProcess(
        run=str(flow_run.get_id()), flow=str(flow_run.get_flow_name()), process=own, worker=worker
    )
    with processes.pid_file(PID_DIR, run, run.run):
        await end_orphans()
        yield
