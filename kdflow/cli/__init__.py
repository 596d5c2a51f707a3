"""The command line. Each module is a group of commands; a command parses its options and calls one function."""

from __future__ import annotations

import typer
from typer.exceptions import TyperException

from kdflow.cli import experiment, paper, students, sweep, tables, teachers
from kdflow.core.errors import UserError, exit_on_user_error

app = typer.Typer(
    help="Knowledge distillation as a pipeline. `dvc repro` runs the experiment in params.yaml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (experiment, tables, paper, sweep, teachers, students):
    app.add_typer(group.app)


def main() -> None:
    """Run the command line and exit. Wrong input is one line on stderr and exit code 1."""
    with exit_on_user_error():
        try:
            code = app(standalone_mode=False)
        except TyperException as error:  # an unknown option or command
            context, names = getattr(error, "ctx", None), list[str]()
            while context is not None and context.parent is not None:
                names, context = [context.info_name, *names], context.parent
            command = " ".join(["kdflow", *names])
            raise UserError(f"{command}: {error.format_message()}") from None
        if code == 130:  # typer's code for Ctrl-C
            raise KeyboardInterrupt
        raise SystemExit(code or 0)
