"""The command line: each command parses and then calls one function. A file is a group of commands."""

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
    """Run the command line."""
    with exit_on_user_error():
        try:
            code = app(standalone_mode=False)
        except TyperException as error:  # a flag or command that is not known
            context, names = getattr(error, "ctx", None), list[str]()
            while context is not None and context.parent is not None:
                names, context = [context.info_name, *names], context.parent
            command = " ".join(["kdflow", *names])
            raise UserError(f"{command}: {error.format_message()}") from None
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        raise SystemExit(code or 0)
