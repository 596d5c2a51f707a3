"""Commands for a paper's tables, figures and cells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdflow.cli.options import PAPER, PaperFolder, RecordsFolder, Root
from kdflow.core.files import output_file

app = typer.Typer()


@app.command()
def plan(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a file is out of date.")] = False,
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """Generate cells.json and dvc.yaml from a paper's tables.yaml, and make its folder a DVC project."""
    from kdflow.paper import load_paper, total_epochs
    from kdflow.paper.dvc_yaml import check_generated, write_generated

    loaded = load_paper(paper, root)
    if not check:
        write_generated(loaded)
    check_generated(loaded)
    typer.echo(
        f"{paper}: {len(loaded.items)} tables and figures, {len(loaded.cells)} cells, {len(loaded.teachers)} teachers; "
        f"{total_epochs(loaded):,.0f} epochs of students at a full budget"
    )


@app.command()
def cells(
    table: Annotated[str | None, typer.Option(help="Only the cells of this table: 3 or table3.")] = None,
    figure: Annotated[str | None, typer.Option(help="Only the cells of this figure: 1 or figure1.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Print the status of each cell.")] = False,
    records: RecordsFolder = None,
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """List the paper's cells and teachers. `dvc --cd paper repro cell@NAME` or `teacher@NAME` makes one."""
    from collections import Counter

    from kdflow.paper import CellStatuses, load_paper
    from kdflow.training.record import distinct_notes

    loaded = load_paper(paper, root, records)
    chosen = [f"{kind}{key}" if key.isdigit() else key for kind, key in (("table", table), ("figure", figure)) if key]
    for item in chosen:
        loaded.get_item(item)
    names = [name for name in loaded.cells if not chosen or set(chosen) & set(loaded.printed_in[name])]
    used = {f"{cell.dataset}-{cell.teacher}" for name, cell in loaded.cells.items() if name in names}
    teachers = [name for name in loaded.teachers if name in used or not chosen]
    if not status:
        typer.echo("\n".join([*teachers, *names]))
        return
    statuses, counts, budget_notes = CellStatuses(loaded), Counter[str](), list[str]()
    for name in names:
        statuses.runs(name)  # refuses edited records
    for name in teachers:
        teacher = statuses.teacher(name)
        top1 = "" if teacher is None else f"{teacher.accuracy.top1:.2f}"
        budget_notes += [] if teacher is None else [teacher.budget_note]
        typer.echo(f"{'missing' if teacher is None else 'done':8} teacher  {top1:10} {name}")
    for name in names:
        cell = statuses(name)
        counts[cell.status] += 1
        top1 = ""
        if cell.record and cell.seeds_done:
            top1, budget_notes = str(cell.record.top1), [*budget_notes, cell.record.budget_note]
        reason = f"  ({cell.reason})" if cell.reason else ""
        typer.echo(f"{cell.status:8} {cell.seeds_done}/{cell.seeds_total}  {top1:13} {name}{reason}")
    if notes := distinct_notes(budget_notes):
        typer.echo(f"Not a full run: {'; '.join(notes)}.")
    typer.echo(", ".join(f"{count} {status}" for status, count in counts.items()) or "no cells")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="CELL|TEACHER")], paper: PaperFolder = PAPER, root: Root = Path()
) -> None:
    """Print a cell or teacher: settings, command, inputs, status, the paper's value, and the record."""
    from kdflow.paper import load_paper
    from kdflow.report.cell_text import describe_cell

    typer.echo(describe_cell(load_paper(paper, root), name))


@app.command()
def report(
    out: Annotated[
        Path | None, typer.Option(help="File to write, .html or .md. Default: report.html beside the results.")
    ] = None,
    records: RecordsFolder = None,
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """Write one page with all tables and figures, as far as their cells exist: HTML, or Markdown and image files."""
    from kdflow.paper import load_paper
    from kdflow.report import paper_markdown, paper_page

    loaded = load_paper(paper, root, records)
    file = root / loaded.data / "report.html" if out is None else output_file(out)
    (paper_markdown if file.suffix == ".md" else paper_page).write(loaded, file)
    typer.echo(out or file)


@app.command()
def records(
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. Default: records/ in the paper's folder.")
    ] = None,
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """Copy the records of finished cells to a folder that can be kept in git and given to --records."""
    from kdflow.paper import load_paper
    from kdflow.paper.cells import copy_records

    out = out or root / paper / "records"
    names = copy_records(load_paper(paper, root), out)
    typer.echo(f"{out}: {len(names)} cells")


@app.command()
def drift(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CELL]...", help="Default: all cells of the baseline; with --update: all cells that are done."
        ),
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="Default: baseline.json in the paper's folder.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Make the baseline from the current records.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all comparisons as JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--md", help="Print Markdown for a pull request.")] = False,
    records: RecordsFolder = None,
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """Compare the paper's records with a baseline. Exit code: 0 no drift, 2 drift, 1 bad input."""
    from kdflow.paper import CellStatuses, drift, load_paper

    loaded, file = load_paper(paper, root, records), baseline or root / paper / "baseline.json"
    for name in names or []:
        loaded.get_cell(name)
    if update:
        statuses = CellStatuses(loaded)
        chosen = names or [name for name in loaded.cells if statuses(name).status == "done"]
        tolerances = drift.read_baseline(file).tolerances if file.exists() else drift.TOLERANCES
        drift.write_baseline(output_file(file), drift.make_baseline(loaded, chosen, tolerances))
        typer.echo(f"{file}: {len(chosen)} cells")
        return
    findings = drift.compare(loaded, drift.read_baseline(file), names or [])
    if as_json:
        typer.echo(drift.as_json(findings))
    else:
        typer.echo(drift.markdown(findings) if as_markdown else drift.terminal(findings), nl=False)
    if any(finding.status != "ok" for finding in findings):
        raise typer.Exit(2)
