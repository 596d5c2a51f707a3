"""Prefect's flows: they run the stale stages of DVC pipelines, in parallel and with retries.

A flow reads DVC's graph once and runs each stale stage as a task as soon as the stages before it are done. It works in
the current folder, a clone of the project. DVC alone decides what is up to date.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact
from pydantic import Field

from kdflow import config
from kdflow.config import BaseViewName, Positive, Settings
from kdflow.core.errors import UserError
from kdflow.paper import CellStatuses, Paper, load_paper
from kdflow.sweep import dvc_graph
from kdflow.sweep.dvc_graph import Stage
from kdflow.sweep.recovery import registered_flow_run
from kdflow.sweep.tasks import (
    POLL_SECONDS,
    StageError,
    StageTimeouts,
    is_busy,
    require_deployment,
    run_local,
    run_on_workers,
    run_stage,
)
from kdflow.training.record import MeanStd

Target = Annotated[str, Field(pattern=r"^[a-z0-9_@*?!\[\]-]+$", description="table3, figure1, report, cell@NAME; or *")]
Targets = Annotated[list[Target], Field(min_length=1)]
Epochs = Annotated[list[Positive], Field(min_length=1)]
Names = Annotated[list[str], Field(min_length=1)]
Deployment = Annotated[str, Field(pattern=r"^[^/]+/[^/]+$", description="such as sweep/any")]
DEFAULT_TIMEOUTS = StageTimeouts()
EXPERIMENT = Path()  # the DVC project of the experiment in params.yaml


class Variants(Settings):
    """Variants of the experiment in params.yaml: every combination of the lists is one, run by `dvc exp run -S`."""

    epochs: Epochs | None = None
    methods: Names | None = None
    student: Names | None = None
    base_view: Annotated[list[BaseViewName], Field(min_length=1)] | None = None

    def settings(self, experiment: config.Experiment) -> dict[str, list[str]]:
        """Return the name of each variant and its arguments for -S.

        Raises:
            UserError: there is no list, or a name is unknown.
        """
        lists = [(key, values) for key, values in dict(self).items() if values is not None]
        if not lists:
            raise UserError(f"variants: nothing is varied; allowed: {', '.join(Variants.model_fields)}")
        file = Path("variants")
        config.check_names(
            [(file, "methods", name, experiment.methods) for name in self.methods or []]
            + [(file, "student", name, experiment.models) for name in self.student or []]
        )
        variants = {}
        for combination in itertools.product(*(dict.fromkeys(values) for _, values in lists)):
            pairs = list(zip((key for key, _ in lists), combination, strict=True))
            name = "-".join(f"e{value}" if key == "epochs" else str(value).replace("+", "-") for key, value in pairs)
            variants[f"variant@{name}"] = [
                f"{key}=[{value}]" if key == "methods" else f"{key}={value}" for key, value in pairs
            ]
        return variants


# --- artifacts ---------------------------------------------------------------------------------------------


async def _publish(folder: Path) -> None:
    """Publish the tables and figures of a folder as artifacts."""
    for file in sorted(folder.glob("*.md")):
        await acreate_markdown_artifact(file.read_text(), key=_key(file), description=str(file))
    for file in sorted(folder.glob("*.png")):
        content = base64.b64encode(file.read_bytes()).decode()
        await acreate_image_artifact(f"data:image/png;base64,{content}", key=_key(file), description=str(file))


def _key(file: Path) -> str:
    return f"{file.parent.name}-{file.stem}".lower().replace("_", "-")


async def _publish_cells(paper: Paper, stages: list[str]) -> None:
    """Publish the status of the cells among some stages as an artifact."""
    status_of = CellStatuses(paper)
    rows = []
    for name in (stage.partition("cell@")[2] for stage in stages if "cell@" in stage):
        cell = status_of(name)
        top1 = cell.record.top1 if cell.record else ""
        rows.append(f"| {name} | {cell.status} | {top1} | {cell.seeds_done} of {cell.seeds_total} |")
    if rows:
        head = "| Cell | Status | Test top-1 % | Seeds |\n| --- | --- | ---: | ---: |\n"
        await acreate_markdown_artifact(head + "\n".join(rows), key="cells", description=str(paper.folder))


async def _publish_variants(names: list[str]) -> None:
    """Publish the mean and standard deviation of each variant as an artifact."""
    metrics = await asyncio.to_thread(dvc_graph.metrics, names)
    rows = [
        f"| {name} | {method} | {MeanStd.model_validate({'std': None, **content['top1']})} |"  # DVC leaves out null
        for name, methods in metrics.items()
        for method, content in methods.items()
    ]
    head = "| Variant | Method | Test top-1 % |\n| --- | --- | ---: |\n"
    text = "`dvc exp show` has all metrics"
    await acreate_markdown_artifact(head + "\n".join(rows), key="variants", description=text)


# --- flows -------------------------------------------------------------------------------------------------


def repro(project: Path, forced: Collection[str] = (), *, pull: bool = False) -> Callable[[Stage], list[str]]:
    """Return a function from a stage to the DVC command that runs it alone, unless it is up to date."""

    def command(stage: Stage) -> list[str]:
        options = ["-s", *["-f"] * (stage.name in forced), *["--pull"] * pull]
        return dvc_graph.command(project, "repro", *options, stages=[stage.name])

    return command


@flow
async def experiment(max_parallel: Positive = 2, timeout_hours: StageTimeouts = DEFAULT_TIMEOUTS) -> None:
    """Run the experiment in params.yaml: prepare, teacher, logits, distill, evaluate, report.

    Args:
        max_parallel: The number of stages that may run in parallel, each on its GPUs if the machine has any.
        timeout_hours: The timeout of each kind of stage.
    """
    gpus_per_run = config.load().params.compute.processes_per_run
    async with registered_flow_run():
        stages = await asyncio.to_thread(dvc_graph.stale, EXPERIMENT)
        await run_local(stages, repro(EXPERIMENT), max_parallel, timeout_hours, gpus_per_run, project=EXPERIMENT)
        await _publish(Path("data/report"))


@flow
async def sweep(
    targets: Targets | None = None,
    variants: Variants | None = None,
    paper: str = "paper",
    max_parallel: Positive = 2,
    sync_remote: bool = False,
    deployment: Deployment | None = None,
    timeout_hours: StageTimeouts = DEFAULT_TIMEOUTS,
) -> None:
    """Run tables, figures or cells of a paper, or variants of the experiment in params.yaml.

    Args:
        targets: Such as table3, figure1, report, cell@NAME, cell@*-kd. Stages that are up to date do not run.
        variants: Lists such as epochs and methods, whose combinations run. An alternative to targets.
        paper: The folder of the paper's tables.yaml.
        max_parallel: The number of stages that may run in parallel, each on its GPUs if the machine has any.
        sync_remote: Fetch results from DVC's default remote before the run and push new ones after it.
        deployment: A deployment of this flow. Its workers run the teachers and cells, each in the clone of its machine.
        timeout_hours: The timeout of each kind of stage.
    """
    if (targets is None) == (variants is None):
        raise UserError("targets, variants: exactly one of the two is required")
    if parameter := "sync_remote" if sync_remote else "deployment" if deployment else None:
        if variants is not None:
            raise UserError(f"{parameter}: variants run on one machine only; remove {parameter}, or name targets")
        await asyncio.to_thread(dvc_graph.check_remote, Path(paper), parameter)
    if variants is not None:
        await _run_variants(variants, max_parallel, timeout_hours)
        return
    loaded = load_paper(Path(paper))
    stage_names = dvc_graph.targets(loaded, targets or [])
    if deployment is not None:
        await require_deployment(deployment)
    async with registered_flow_run():
        try:
            if deployment is not None:
                await _run_targets_on_workers(loaded, stage_names, deployment, max_parallel, timeout_hours)
            else:
                await _run_targets(loaded, stage_names, max_parallel, sync_remote, timeout_hours)
            for target in stage_names:
                await _publish(loaded.data / target.rpartition(":")[2])
        except StageError:
            await _publish_cells(loaded, stage_names)
            raise
        await _publish_cells(loaded, stage_names)


@flow
async def drift(
    paper: str = "paper",
    force: Targets | None = None,
    max_parallel: Positive = 2,
    timeout_hours: StageTimeouts = DEFAULT_TIMEOUTS,
) -> None:
    """Compare a paper's records with its baseline; the run fails if a metric has moved or is missing.

    Args:
        paper: The folder of the paper's tables.yaml.
        force: Stages such as cell@*-kd that run first, even if they are up to date.
        max_parallel: The number of stages that may run in parallel.
        timeout_hours: The timeout of each kind of stage.
    """
    from kdflow.paper import drift as check

    loaded = load_paper(Path(paper))
    baseline = check.read_baseline(Path(paper) / "baseline.json")
    forced = dvc_graph.targets(loaded, force) if force else []
    async with registered_flow_run():
        if forced:
            project, gpus_per_run = loaded.folder, loaded.budget.compute.processes_per_run
            stages = await asyncio.to_thread(dvc_graph.stale, project, forced, forced)
            await run_local(stages, repro(project, forced), max_parallel, timeout_hours, gpus_per_run, project=project)
        findings = await asyncio.to_thread(check.compare, loaded, baseline, [])
        await acreate_markdown_artifact(check.markdown(findings), key="drift", description=paper)
        moved = [finding for finding in findings if finding.status != "ok"]
        if moved:
            raise UserError(f"{paper}: {len(moved)} of {len(findings)} metrics moved or are missing; see the artifact")


async def _run_targets(
    paper: Paper, stage_names: list[str], max_parallel: int, sync_remote: bool, timeouts: StageTimeouts
) -> None:
    """Run stale stages in this clone; `sync_remote`: fetch the results of other machines first and push new ones."""
    project, gpus_per_run = paper.folder, paper.budget.compute.processes_per_run
    if sync_remote:
        await run_stage("fetch", dvc_graph.command(project, "fetch", "--run-cache"), {})
    stages = await asyncio.to_thread(dvc_graph.stale, project, stage_names)
    await run_local(stages, repro(project, pull=sync_remote), max_parallel, timeouts, gpus_per_run, project=project)
    if sync_remote:
        # With dependencies: DVC pushes all entries of the run cache, but the outputs of the named stages only.
        push = dvc_graph.command(project, "push", "--run-cache", "--with-deps", stages=stage_names)
        await run_stage("push", push, {})


async def _run_targets_on_workers(
    paper: Paper, stage_names: list[str], deployment: str, max_parallel: int, timeouts: StageTimeouts
) -> None:
    """Run stale teachers and cells on workers, all other stages in this clone."""
    project, fetch = paper.folder, dvc_graph.command(paper.folder, "fetch", "--run-cache")
    await run_stage("fetch", fetch, {})
    stages = await asyncio.to_thread(dvc_graph.stale, project, stage_names)
    if datasets := [stage for stage in stages if stage.kind == "prepare"]:
        await run_local(datasets, repro(project, pull=True), max_parallel, timeouts, project=project)
        names = [stage.name for stage in datasets]
        await run_stage("push", dvc_graph.command(project, "push", "--run-cache", stages=names), {})
    on_workers = [stage for stage in stages if stage.kind in ("teacher", "cell")]
    parameters = {"paper": paper.folder.as_posix(), "sync_remote": True, "max_parallel": 1}
    await run_on_workers(dvc_graph.restrict(on_workers), deployment, parameters, max_parallel)
    await run_stage("fetch", fetch, {})
    while await is_busy(project, [stage.name for stage in stages]):
        await asyncio.sleep(POLL_SECONDS)
    await run_stage("collect", dvc_graph.command(project, "repro", "--pull", stages=stage_names), {})


async def _run_variants(variants: Variants, max_parallel: int, timeouts: StageTimeouts) -> None:
    """Run variants in parallel, each as a DVC experiment in a temporary workspace."""
    experiment = config.load()
    settings, gpus_per_run = variants.settings(experiment), experiment.params.compute.processes_per_run
    # With the prefix, names differ from those of other experiments, and from abbreviated commits such as e960.
    names = {name: name.replace("@", "-") for name in settings}

    def command(stage: Stage) -> list[str]:
        options = [part for setting in settings[stage.name] for part in ("-S", setting)]
        return dvc_graph.command(EXPERIMENT, "exp", "run", "--temp", "-n", names[stage.name], *options)

    async with registered_flow_run():
        stages = await asyncio.to_thread(dvc_graph.stale, EXPERIMENT, ["logits"])
        await run_local(stages, repro(EXPERIMENT), max_parallel, timeouts, gpus_per_run, project=EXPERIMENT)
        await asyncio.to_thread(dvc_graph.remove_experiments, names.values())
        variants_to_run = [Stage(name, ()) for name in settings]
        await run_local(variants_to_run, command, max_parallel, timeouts, gpus_per_run, project=None)
        await _publish_variants(list(names.values()))
