"""The command that runs sweeps from a terminal and shows the flow runs of this folder."""

from __future__ import annotations

import os
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from kdflow.cli.options import PAPER, PaperFolder
from kdflow.core.errors import UserError, one_line

if TYPE_CHECKING:
    from kdflow.paper import Paper

app = typer.Typer()


@app.command()
def sweep(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET]...", help="table3, figure1, report, cell@NAME, cell@*-kd.")
    ] = None,
    epochs: Annotated[
        list[int] | None, typer.Option(help="Run variants of params.yaml, not targets. May be repeated.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Methods of the variants. May be repeated.")] = None,
    student: Annotated[list[str] | None, typer.Option(help="Students of the variants. May be repeated.")] = None,
    max_parallel: Annotated[int, typer.Option(min=1, help="The number of stages that may run in parallel.")] = 2,
    status: Annotated[
        bool, typer.Option("--status", help="Show the flow runs of this folder and the status of the cells.")
    ] = False,
    paper: PaperFolder = PAPER,
) -> None:
    """Run targets of a paper or variants of the experiment as a Prefect flow in this folder."""
    import asyncio

    from kdflow import config
    from kdflow.paper import load_paper
    from kdflow.sweep import dvc_graph, processes

    loaded = load_paper(paper)
    stage_names = dvc_graph.targets(loaded, targets or [])
    if status:
        typer.echo("\n".join(_status(loaded, stage_names)))
        return
    lists: dict[str, list[int] | list[str] | None] = {"epochs": epochs, "methods": method, "student": student}
    given = {key: values for key, values in lists.items() if values}
    if bool(targets) == bool(given):
        raise UserError("kdflow sweep: either targets or variants (--epochs, --method, --student) are required")
    os.environ.update(processes.NO_TELEMETRY)  # before Prefect is imported
    from kdflow.sweep import flows
    from kdflow.sweep.server import prefect_server
    from kdflow.sweep.tasks import StageError

    variants = config.settings_from_options("kdflow sweep", flows.Variants, given) if given else None
    if variants is not None:
        variants.settings(config.load())  # refuse unknown names before a server starts

    async def run() -> None:
        async with prefect_server():
            await flows.sweep(targets=targets, variants=variants, paper=paper.as_posix(), max_parallel=max_parallel)

    try:
        asyncio.run(run())
    except StageError as error:
        raise UserError(f"kdflow sweep: {one_line(error)}") from None


def _status(paper: Paper, stage_names: list[str]) -> list[str]:
    """Return a line per flow run and process group of this folder, and one about the cells of the targets."""
    from kdflow.paper import CellStatuses
    from kdflow.sweep.processes import PID_DIR, FlowRunProcess, Group, read_pid_files

    lines, runs = [], {run.flow_run: run for run in read_pid_files(PID_DIR, FlowRunProcess).values()}
    for run in runs.values():
        start, process = _format_time(run.process.start_time), run.process.pid
        note = "  orphaned: the next flow marks it as crashed and ends its processes" if run.orphaned else ""
        lines.append(f"{run.flow:10}  run {run.flow_run}  process {process}  since {start}{note}")
    for group in read_pid_files(PID_DIR, Group).values():
        if not group.members:
            continue
        start, process = _format_time(group.leader.start_time), group.leader.pid
        note = "" if group.flow_run in runs else "  orphaned: the next flow ends it"
        lines.append(f"  {group.description}  process group {process}  since {start}{note}")
    chosen = {target.rpartition(":")[2] for target in stage_names}
    names = [name for name in paper.cells if not stage_names or {f"cell@{name}", *paper.printed_in[name]} & chosen]
    statuses = CellStatuses(paper)
    counts = Counter(statuses(name).status for name in names)
    cells = ", ".join(f"{count} {status}" for status, count in counts.items())
    return [*(lines or ["no flow runs in this folder"]), f"{paper.folder}: {len(names)} cells: {cells}"]


def _format_time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
