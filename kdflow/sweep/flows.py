"""Prefect's flows: when and where DVC's stages run, again if need be. What is up to date, DVC alone knows.

A flow reads DVC's graph once and runs what is stale, each stage as a task as soon as those before it are done. It works
in the current folder, a clone of the project.
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
from kdflow.paper.cells import CellStatuses
from kdflow.paper.paper import Paper, load_paper
from kdflow.sweep import dvc_graph
from kdflow.sweep.dvc_graph import Stage
from kdflow.sweep.tasks import (
    DVC,
    StageError,
    StageTimeouts,
    registered_flow_run,
    require_deployment,
    run_local,
    run_on_workers,
    run_stage,
)
from kdflow.training.record import MeanStd

Target = Annotated[str, Field(pattern=r"^[a-z0-9_@*?!\[\]-]+$", description="table3, figure1, report, cell@NAME; or *")]
Targets = Annotated[list[Target], Field(min_length=1)]
Number = Annotated[list[Positive], Field(min_length=1)]
Names = Annotated[list[str], Field(min_length=1)]
Deployment = Annotated[str, Field(pattern=r"^[^/]+/[^/]+$", description="such as sweep/any")]
HOURS = StageTimeouts()
FETCH, PUSH = [*DVC, "fetch", "--run-cache"], [*DVC, "push", "--run-cache"]


class Variants(Settings):
    """Variants of the experiment in params.yaml: every combination is one, as `dvc exp run -S` runs it."""

    epochs: Number | None = None
    methods: Names | None = None
    student: Names | None = None
    base_view: Annotated[list[BaseViewName], Field(min_length=1)] | None = None

    def settings(self, experiment: config.Experiment) -> dict[str, list[str]]:
        """Each variant's name, and what it sets.

        Raises:
            UserError: nothing is varied, or a name is not known.
        """
        given = [(key, values) for key, values in dict(self).items() if values is not None]
        if not given:
            raise UserError(f"variants: nothing is varied; allowed: {', '.join(Variants.model_fields)}")
        file = Path("variants")
        config.check_names(
            [(file, "methods", name, experiment.methods) for name in self.methods or []]
            + [(file, "student", name, experiment.models) for name in self.student or []]
        )
        found = {}
        for chosen in itertools.product(*(dict.fromkeys(values) for _, values in given)):
            pairs = list(zip((key for key, _ in given), chosen, strict=True))
            name = "-".join(f"e{value}" if key == "epochs" else str(value).replace("+", "-") for key, value in pairs)
            found[f"variant@{name}"] = [
                f"{key}=[{value}]" if key == "methods" else f"{key}={value}" for key, value in pairs
            ]
        return found


# --- what is shown -----------------------------------------------------------------------------------------


async def _show(folder: Path) -> None:
    """Tables and figures of a folder as artifacts."""
    for file in sorted(folder.glob("*.md")):
        await acreate_markdown_artifact(file.read_text(), key=_key(file), description=str(file))
    for file in sorted(folder.glob("*.png")):
        content = base64.b64encode(file.read_bytes()).decode()
        await acreate_image_artifact(f"data:image/png;base64,{content}", key=_key(file), description=str(file))


def _key(file: Path) -> str:
    return f"{file.parent.name}-{file.stem}".lower().replace("_", "-")


async def _show_cells(paper: Paper, wanted: list[str]) -> None:
    """What became of the cells among some targets, as an artifact."""
    names, states = [target.partition("cell@")[2] for target in wanted if "cell@" in target], CellStatuses(paper)
    rows = [
        f"| {n} | {(s := states(n)).status} | {s.record.top1 if s.record else ''} | {s.n} of {s.of} |" for n in names
    ]
    if rows:
        head = "| Cell | Status | Test top-1 % | Seeds |\n| --- | --- | ---: | ---: |\n"
        await acreate_markdown_artifact(head + "\n".join(rows), key="cells", description=str(paper.folder))


# --- the flows ---------------------------------------------------------------------------------------------


def repro(forced: Collection[str] = (), *, pull: bool = False) -> Callable[[Stage], list[str]]:
    """How DVC runs a stage alone: it waits for locks, and knows itself what is up to date."""

    def command(one: Stage) -> list[str]:
        return [*DVC, "repro", "-s", *["-f"] * (one.name in forced), *["--pull"] * pull, one.name]

    return command


@flow
async def experiment(at_once: Positive = 2, hours: StageTimeouts = HOURS) -> None:
    """The experiment in params.yaml: prepare, teacher, logits, distil, evaluate, report.

    Args:
        at_once: How many stages at the same time; with cards, each on one of its own.
        hours: How long a stage may take.
    """
    cards = config.load().params.compute.processes_per_run
    async with registered_flow_run():
        await run_local(await asyncio.to_thread(dvc_graph.stale, []), repro(), at_once, hours, cards)
        await _show(Path("data/report"))


@flow
async def sweep(
    targets: Targets | None = None,
    variants: Variants | None = None,
    paper: str = "paper",
    at_once: Positive = 2,
    share: bool = False,
    spread: Deployment | None = None,
    hours: StageTimeouts = HOURS,
) -> None:
    """Tables, figures or cells of a paper, or variants of the experiment in params.yaml.

    Args:
        targets: Such as table3, figure1, report, cell@NAME, cell@*-kd: what is up to date is not run.
        variants: Lists whose combinations are run, such as epochs and methods; instead of targets.
        paper: The folder of the paper's tables.yaml.
        at_once: How many stages at the same time; with cards, each on one of its own.
        share: Take results from DVC's remote before, put them there after.
        spread: A deployment of this flow whose workers, in clones of their own, run teachers and cells.
        hours: How long a stage may take.
    """
    if (targets is None) == (variants is None):
        raise UserError("targets, variants: one of the two is needed")
    if together := "share" if share else "spread" if spread else None:
        if variants is not None:
            raise UserError(f"{together}: variants are run here, by one machine; leave it out, or name targets")
        await asyncio.to_thread(dvc_graph.check_remote, together)
    if variants is not None:
        await _vary(variants, at_once, hours)
        return
    found = load_paper(Path(paper))
    wanted = dvc_graph.targets(found, targets or [])
    if spread is not None:
        await require_deployment(spread)
    async with registered_flow_run():
        try:
            if spread is not None:
                await _spread(found, wanted, spread, at_once, hours)
            else:
                await _sweep(found, wanted, at_once, share, hours)
            for target in wanted:
                await _show(found.data / target.rpartition(":")[2])
        except StageError:
            await _show_cells(found, wanted)
            raise
        await _show_cells(found, wanted)


@flow
async def drift(
    paper: str = "paper", remake: Targets | None = None, at_once: Positive = 2, hours: StageTimeouts = HOURS
) -> None:
    """Hold a paper's records against its baseline; fails where something moved.

    Args:
        paper: The folder of the paper's tables.yaml.
        remake: Such as cell@*-kd: made anew before, whether up to date or not.
        at_once: How many stages at the same time.
        hours: How long a stage may take.
    """
    from kdflow.paper import drift as check

    found = load_paper(Path(paper))
    baseline = check.read_baseline(Path(paper) / "baseline.json")
    forced = dvc_graph.targets(found, remake) if remake else []
    async with registered_flow_run():
        if forced:
            stages = await asyncio.to_thread(dvc_graph.stale, forced, forced)
            await run_local(stages, repro(forced), at_once, hours, found.spending.compute.processes_per_run)
        findings = await asyncio.to_thread(check.compare, found, baseline, [])
        await acreate_markdown_artifact(check.markdown(findings), key="drift", description=paper)
        moved = [finding for finding in findings if finding.status != "ok"]
        if moved:
            raise UserError(f"{paper}: {len(moved)} of {len(findings)} figures moved or are missing; see the artifact")


async def _sweep(found: Paper, wanted: list[str], at_once: int, share: bool, hours: StageTimeouts) -> None:
    """Run what is stale here; with `share`, what another machine has computed is taken, and what is new is given."""
    if share:
        await run_stage("fetch", FETCH, {})
    stages = await asyncio.to_thread(dvc_graph.stale, wanted)
    await run_local(stages, repro(pull=share), at_once, hours, found.spending.compute.processes_per_run)
    if share:
        # With what they need: of the run cache DVC pushes all entries, but of their outputs only those of targets.
        await run_stage("push", [*PUSH, "--with-deps", *wanted], {})


async def _spread(found: Paper, wanted: list[str], deployment: str, at_once: int, hours: StageTimeouts) -> None:
    """Have workers elsewhere run what is stale of teachers and cells; the rest is made here."""
    await run_stage("fetch", FETCH, {})
    stages = await asyncio.to_thread(dvc_graph.stale, wanted)
    if first := [one for one in stages if one.kind == "prepare"]:
        await run_local(first, repro(pull=True), at_once, hours)
        await run_stage("push", [*PUSH, *(one.name for one in first)], {})
    apart = [one for one in stages if one.kind in ("teacher", "cell")]
    parameters = {"paper": found.folder.as_posix(), "share": True, "at_once": 1}
    await run_on_workers(dvc_graph.restrict(apart), deployment, parameters, at_once)
    await run_stage("fetch", FETCH, {})
    await run_stage("collect", [*DVC, "repro", "--pull", *wanted], {})


async def _vary(variants: Variants, at_once: int, hours: StageTimeouts) -> None:
    """Run variants side by side, each as an experiment of DVC in a workspace of its own."""
    experiment = config.load()
    wanted, cards = variants.settings(experiment), experiment.params.compute.processes_per_run
    # Names of experiments that nobody gives by hand, and that are no beginning of a commit's hash, as e960 is.
    names = {name: name.replace("@", "-") for name in wanted}
    async with registered_flow_run():
        await run_local(await asyncio.to_thread(dvc_graph.stale, ["logits"]), repro(), at_once, hours, cards)
        await asyncio.to_thread(dvc_graph.remove_experiments, names.values())

        def command(one: Stage) -> list[str]:
            options = [part for setting in wanted[one.name] for part in ("-S", setting)]
            return [*DVC, "exp", "run", "--temp", "-n", names[one.name], *options]

        await run_local([Stage(name, ()) for name in wanted], command, at_once, hours, cards)
        await _show_variants(list(names.values()))


async def _show_variants(names: list[str]) -> None:
    """Mean and spread of each variant, as an artifact."""
    found = await asyncio.to_thread(dvc_graph.metrics, names)
    rows = [
        f"| {name} | {method} | {MeanStd.model_validate({'std': None, **content['top1']})} |"  # DVC leaves out null
        for name, methods in found.items()
        for method, content in methods.items()
    ]
    head = "| Variant | Method | Test top-1 % |\n| --- | --- | ---: |\n"
    await acreate_markdown_artifact(head + "\n".join(rows), key="variants", description="dvc exp show has all of it")
