"""Commands about a paper whose figures are targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdflow.cli.options import PAPER, PaperFolder, Root

app = typer.Typer()


@app.command()
def plan(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where a file is not up to date.")] = False,
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """Make cells.json and dvc.yaml of a paper's tables.yaml."""
    from kdflow.paper.dvc_yaml import check_generated, write_generated
    from kdflow.paper.paper import load_paper, total_epochs

    found = load_paper(paper, root)
    if not check:
        write_generated(found)
    check_generated(found)
    typer.echo(
        f"{paper}: {len(found.parts)} tables and figures, {len(found.cells)} cells, {len(found.teachers)} teachers; "
        f"in full {total_epochs(found):,.0f} epochs of students"
    )


@app.command()
def cells(
    table: Annotated[str | None, typer.Option(help="Only what this table prints: 3 or table3.")] = None,
    figure: Annotated[str | None, typer.Option(help="Only what this figure prints: 1 or figure1.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Look at what is made of each.")] = False,
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """List the paper's cells and their teachers: dvc repro paper/dvc.yaml:cell@NAME, or teacher@NAME."""
    from collections import Counter

    from kdflow.paper.cells import CellStatuses
    from kdflow.paper.paper import load_paper

    found = load_paper(paper, root)
    chosen = [f"{kind}{key}" if key.isdigit() else key for kind, key in (("table", table), ("figure", figure)) if key]
    for part in chosen:
        found.part_named(part)
    names = [name for name in found.cells if not chosen or set(chosen) & set(found.users[name])]
    asked = {f"{cell.dataset}-{cell.teacher}" for name, cell in found.cells.items() if name in names}
    teachers = [name for name in found.teachers if name in asked or not chosen]
    if not status:
        typer.echo("\n".join([*teachers, *names]))
        return
    states, counts = CellStatuses(found), Counter[str]()
    for name in teachers:
        record = states.teacher(name)
        top1 = "" if record is None else f"{record[0].accuracy.top1:.2f}"
        typer.echo(f"{'missing' if record is None else 'done':8} teacher  {top1:10} {name}")
    for name in names:
        state = states(name)
        counts[state.status] += 1
        top1 = str(state.record.top1) if state.record and state.n else ""
        typer.echo(f"{state.status:8} {state.n}/{state.of}  {top1:13} {name}{state.why and f'  ({state.why})'}")
    typer.echo(", ".join(f"{count} {status}" for status, count in counts.items()) or "no cells")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="CELL|TEACHER")], paper: PaperFolder = PAPER, root: Root = Path()
) -> None:
    """Print a cell or teacher: settings, command, inputs, state, what the paper prints, and its record."""
    from kdflow.paper.paper import load_paper
    from kdflow.report.cell_text import describe_cell

    typer.echo(describe_cell(load_paper(paper, root), name))


@app.command()
def report(
    out: Annotated[Path | None, typer.Option(help="The page; else data/<paper>/report.html.")] = None,
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """Make one page of all tables and figures, as far as their cells are there."""
    from kdflow.paper.paper import load_paper
    from kdflow.report import paper_page

    found = load_paper(paper, root)
    out = out or root / found.data / "report.html"
    paper_page.write(found, out)
    typer.echo(out)


@app.command()
def drift(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CELL]...", help="None: all of the baseline; to update: all that are done."),
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="Else baseline.json of the paper's folder.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Make the baseline of what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all comparisons as JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--md", help="Print Markdown for a pull request.")] = False,
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """Hold the paper's records against a baseline; exit code 0: nothing moved, 2: something did, 1: bad input."""
    from kdflow.paper import drift
    from kdflow.paper.cells import CellStatuses
    from kdflow.paper.paper import load_paper

    found, file = load_paper(paper, root), baseline or root / paper / "baseline.json"
    for name in names or []:
        found.cell_named(name)
    if update:
        states = CellStatuses(found)
        chosen = names or [name for name in found.cells if states(name).status == "done"]
        drift.write_baseline(
            file,
            drift.make_baseline(
                found, chosen, drift.read_baseline(file).tolerances if file.exists() else drift.TOLERANCES
            ),
        )
        typer.echo(f"{file}: {len(chosen)} cells")
        return
    findings = drift.compare(found, drift.read_baseline(file), names or [])
    if as_json:
        typer.echo(drift.as_json(findings))
    else:
        typer.echo(drift.markdown(findings) if as_markdown else drift.terminal(findings), nl=False)
    if any(finding.status != "ok" for finding in findings):
        raise typer.Exit(2)
