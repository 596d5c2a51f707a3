"""The entry point of the stages' scripts."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from kdflow.core.errors import UserError, exit_on_user_error
from kdflow.core.parent import end_with_parent
from kdflow.core.source import check_source


def run_script(main: Callable[..., None]) -> None:
    """Call `main` of a script in stages/ with the command line's arguments.

    Bad input ends the process with one line and exit code 1. The process also ends when its parent has ended.
    """
    end_with_parent()
    script, arguments = Path(sys.argv[0]), sys.argv[1:]
    with exit_on_user_error():
        check_source(script)
        expected = inspect.signature(main).parameters
        if len(arguments) != len(expected):
            usage = " ".join([f"python -m stages.{script.stem}", *(name.upper() for name in expected)])
            raise UserError(f"usage: {usage}")
        main(*arguments)
