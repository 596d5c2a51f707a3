"""The command line. Each module is a group of commands; a command parses its options and calls one function."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from kdflow import __version__
from kdflow.cli import experiment, exported, paper, project, students, sweep, tables, teachers
from kdflow.core.errors import UserError, exit_on_user_error

app = typer.Typer(
    help="Knowledge distillation as a pipeline. `dvc repro` runs the experiment in params.yaml.",
    pretty_exceptions_enable=False,
)
for group in (project, experiment, tables, paper, sweep, teachers, students, exported):
    app.add_typer(group.app)


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"kdflow {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declare the options that the command line has without a command."""


def main() -> None:
    """Run the command line and exit. Wrong input is one line on stderr and exit code 1."""
    with exit_on_user_error():
        try:
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        except TyperException as error:  # an unknown option or command
            context, names = getattr(error, "ctx", None), list[str]()
            while context is not None and context.parent is not None:
                names, context = [context.info_name, *names], context.parent
            command = " ".join(["kdflow", *names])
            raise UserError(f"{command}: {error.format_message()}") from None
        if code == 130:  # typer's code for Ctrl-C
            raise KeyboardInterrupt
        raise SystemExit(code or 0)
