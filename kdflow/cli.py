"""The command line: each command parses and then calls one function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from kdflow.errors import UserError, one_line_errors

app = typer.Typer(
    help="Knowledge distillation as a pipeline. `dvc repro` runs the experiment in params.yaml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Root = Annotated[Path, typer.Option(help="The project's folder.")]


@app.command()
def check(root: Root = Path()) -> None:
    """Check params.yaml and recipes/ without running anything."""
    from kdflow import config

    experiment = config.load(root)
    params = experiment.params
    typer.echo(
        f"settings are valid: {params.dataset}, {params.teacher} -> {params.student}, "
        f"{len(params.methods)} methods x {len(params.seeds)} seeds"
    )


@app.command()
def table(root: Root = Path()) -> None:
    """Print the table of the experiment in params.yaml, and where its figure lies."""
    from rich.console import Console
    from rich.table import Table

    from kdflow import config, report
    from kdflow.report.table import HEAD, notes, rows

    results = report.collect(config.load(root), root / "data/teacher/record.json", root / "data/records")
    shown = Table(title=results.title, title_justify="left")
    for i, column in enumerate(HEAD):
        shown.add_column(column, justify="right" if i else "left")
    for row in rows(results):
        shown.add_row(*row)
    console = Console()
    console.print(shown)
    for line in notes(results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    typer.echo(f"table:  {root / 'data/report/table.md'}\nfigure: {root / 'data/report/accuracy.svg'} (and .png)")


def main() -> None:
    """Run the command line."""
    with one_line_errors():
        try:
            code = app(standalone_mode=False)
        except TyperException as error:  # a flag or command that is not known
            raise UserError(f"kdflow: {error.format_message()}") from None
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt


if __name__ == "__main__":
    main()
