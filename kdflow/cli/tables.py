"""The command that prints tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdflow.cli.options import PAPER, PaperFolder, Root
from kdflow.core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kdflow.report.paper_item import ItemView

app = typer.Typer()


@app.command()
def table(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[TABLE]", help="A table of the paper. Default: the table of the experiment in params.yaml."
        ),
    ] = None,
    format_: Annotated[
        Literal["terminal", "md", "tex", "csv", "json"],
        typer.Option("--format", help="Format of a table of the paper."),
    ] = "terminal",
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """Print the table of the experiment in params.yaml, or a table of the paper as far as its cells exist."""
    from rich.console import Console
    from rich.table import Table

    from kdflow import config, report
    from kdflow.report.experiment_table import COLUMNS, notes, rows

    if name is not None:
        _paper_table(name, format_, paper, root)
        return
    results = report.collect(config.load(root), root / "data/teacher/record.json", root / "data/records")
    summary = Table(title=results.title, title_justify="left")
    for i, column in enumerate(COLUMNS):
        summary.add_column(column, justify="right" if i else "left")
    for row in rows(results):
        summary.add_row(*row)
    console = Console()
    console.print(summary)
    for line in notes(results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    typer.echo(f"table:  {root / 'data/report/table.md'}\nfigure: {root / 'data/report/accuracy.svg'} (and .png)")


def _paper_table(name: str, format_: str, folder: Path, root: Path) -> None:
    from kdflow.paper import CellStatuses, load_paper
    from kdflow.report import paper_item

    paper = load_paper(folder, root)
    caption, view = paper.get_item(name).caption, paper_item.view(paper, CellStatuses(paper), name)
    if not view.formats:
        command = paper.repro_command(name)
        raise UserError(f"kdflow table: {name}: a figure; `{command}` or `kdflow report` draws it")
    if format_ == "terminal":
        _print_view(f"{name}: {caption}", view)
    else:
        typer.echo(view.formats[format_], nl=False)


def _print_view(title: str, view: ItemView) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    table.add_column("")
    for column in view.columns:
        table.add_column(column, justify="right")
    styles = {1: "[bold]{}[/]", 2: "[underline]{}[/]", None: "{}"}
    for label, cells in view.rows.items():
        texts = []
        for cell in cells:
            style = "[dim]{}[/]" if cell.text == cell.status else styles[cell.rank]
            texts.append("\n".join([style.format(cell.text), *(f"[dim]{detail}[/]" for detail in cell.details)]))
        table.add_row(escape(label), *texts)
    console = print_whole(table)
    for line in view.notes:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_whole(table: Table) -> Console:
    """Print a table without cutting off a digit, and return the console."""
    from rich.console import Console

    console = Console()
    # On a narrower terminal the lines wrap; by default rich would shorten the columns.
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)
    return console
