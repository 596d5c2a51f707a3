"""Tables on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdflow.cli.options import PAPER, PaperFolder, Root
from kdflow.core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kdflow.report.paper_grid import Grid

app = typer.Typer()


@app.command()
def table(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[TABLE]", help="A table of the paper; none: that of the experiment in hand."),
    ] = None,
    form: Annotated[
        Literal["terminal", "md", "tex", "csv", "json"], typer.Option("--format", help="Of a table of the paper.")
    ] = "terminal",
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """Print the table of the experiment in params.yaml, or a table of the paper with what is there of it."""
    from rich.console import Console
    from rich.table import Table

    from kdflow import config, report
    from kdflow.report.experiment_table import COLUMNS, notes, rows

    if name is not None:
        _paper_table(name, form, paper, root)
        return
    results = report.collect(config.load(root), root / "data/teacher/record.json", root / "data/records")
    shown = Table(title=results.title, title_justify="left")
    for i, column in enumerate(COLUMNS):
        shown.add_column(column, justify="right" if i else "left")
    for row in rows(results):
        shown.add_row(*row)
    console = Console()
    console.print(shown)
    for line in notes(results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    typer.echo(f"table:  {root / 'data/report/table.md'}\nfigure: {root / 'data/report/accuracy.svg'} (and .png)")


def _paper_table(name: str, form: str, folder: Path, root: Path) -> None:
    from kdflow.paper.cells import CellStatuses
    from kdflow.paper.paper import load_paper
    from kdflow.paper.tables import AccuracyTable, CostTable
    from kdflow.report import cost_table, paper_table
    from kdflow.report.paper_grid import grid

    paper = load_paper(folder, root)
    part = paper.part_named(name)
    if isinstance(part, AccuracyTable):
        found = grid(paper, CellStatuses(paper), name, part)
        if form == "terminal":
            _print_grid(found)
        else:
            typer.echo(paper_table.all_formats(found)[form], nl=False)
    elif isinstance(part, CostTable):
        forms = cost_table.all_formats(name, part, cost_table.rows(paper, part))
        typer.echo(forms["md" if form == "terminal" else form], nl=False)
    else:
        made = f"dvc repro {folder}/dvc.yaml:{name}"
        raise UserError(f"kdflow table: {name}: a figure; `{made}` or `kdflow report` draws it")


def _print_grid(found: Grid) -> None:
    from rich.table import Table

    from kdflow.report.paper_table import column_names, figure, notes, paper_text

    shown = Table(title=f"{found.name}: {found.caption}", title_justify="left")
    shown.add_column("")
    for head in column_names(found):
        shown.add_column(head, justify="right")
    styles = {1: "bold", 2: "underline", None: ""}
    for label, entries in found.rows.items():
        texts = []
        for entry in entries:
            style = styles[found.rank(entry)] if entry.ours else "dim"
            ours = f"[{style}]{figure(entry)}[/]" if style else figure(entry)
            texts.append(f"{ours}\n[dim]{paper_text(entry)}[/]" if paper_text(entry) else ours)
        shown.add_row(label, *texts)
    console = print_whole(shown)
    console.print("Below each figure: the paper's, and ours less the paper's.", highlight=False, soft_wrap=True)
    for line in notes(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_whole(shown: Table) -> Console:
    """Print a table that is never cut off; returns the console."""
    from rich.console import Console

    console = Console()
    # Where there is less room the terminal breaks lines, but rich cuts no digit off.
    console.width = max(console.width, console.measure(shown, options=console.options.update(width=1000)).maximum)
    console.print(shown)
    return console
