"""Prefect's sweep from a terminal, and what is under way here."""

from __future__ import annotations

import os
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from kdflow.cli.options import PAPER, PaperFolder
from kdflow.core.errors import UserError, one_line

if TYPE_CHECKING:
    from kdflow.paper.paper import Paper

app = typer.Typer()


@app.command()
def sweep(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET]...", help="table3, figure1, report, cell@NAME, cell@*-kd.")
    ] = None,
    epochs: Annotated[
        list[int] | None, typer.Option(help="Variants of params.yaml instead; may be given again.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Variants, as --epochs.")] = None,
    student: Annotated[list[str] | None, typer.Option(help="Variants, as --epochs.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="How many stages at the same time.")] = 2,
    status: Annotated[bool, typer.Option("--status", help="Say what is under way here, and what is done.")] = False,
    paper: PaperFolder = PAPER,
) -> None:
    """Run targets of the paper or variants of the experiment by Prefect, as its deployments do (in this folder)."""
    import asyncio

    from kdflow import config
    from kdflow.paper.paper import load_paper
    from kdflow.sweep import dvc_graph, processes

    found = load_paper(paper)
    wanted = dvc_graph.targets(found, targets or [])
    if status:
        typer.echo("\n".join(_status(found, wanted)))
        return
    varied: dict[str, list[int] | list[str] | None] = {"epochs": epochs, "methods": method, "student": student}
    given = {key: values for key, values in varied.items() if values}
    if bool(targets) == bool(given):
        raise UserError("kdflow sweep: either targets or variants (--epochs, --method, --student) are needed")
    os.environ.update(processes.NO_TELEMETRY)  # before Prefect is imported
    from kdflow.sweep import flows
    from kdflow.sweep.server import prefect_server
    from kdflow.sweep.tasks import StageError

    variants = config.settings_from_options("kdflow sweep", flows.Variants, given) if given else None
    if variants is not None:
        variants.settings(config.load())  # refused before a server is started

    async def run() -> None:
        async with prefect_server():
            await flows.sweep(targets=targets, variants=variants, paper=paper.as_posix(), at_once=at_once)

    try:
        asyncio.run(run())
    except StageError as error:
        raise UserError(f"kdflow sweep: {one_line(error)}") from None


def _status(paper: Paper, wanted: list[str]) -> list[str]:
    """What runs in this folder, what is left of what ran, and how far the cells are."""
    from kdflow.paper.cells import CellStatuses
    from kdflow.sweep.processes import PID_DIR, FlowRunProcess, Group, read_pid_files

    lines, runs = [], {run.run: run for run in read_pid_files(PID_DIR, FlowRunProcess).values()}
    for run in runs.values():
        lost = "  lost: the next flow marks it as crashed and ends what is left of it" if run.lost else ""
        lines.append(f"{run.flow:10}  run {run.run}  process {run.process.pid}  since {_at(run.process.began)}{lost}")
    for group in read_pid_files(PID_DIR, Group).values():
        if not group.members:
            continue
        whose = "" if group.run in runs else "  orphan: the next flow ends it"
        lines.append(f"  {group.what}  process group {group.leader.pid}  since {_at(group.leader.began)}{whose}")
    chosen = {target.rpartition(":")[2] for target in wanted}
    states, names = (
        CellStatuses(paper),
        [n for n in paper.cells if not wanted or {f"cell@{n}", *paper.users[n]} & chosen],
    )
    counts = Counter(states(name).status for name in names)
    cells = ", ".join(f"{count} {status}" for status, count in counts.items())
    return [*(lines or ["nothing runs here"]), f"{paper.folder}: {len(names)} cells: {cells}"]


def _at(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
