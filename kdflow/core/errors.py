"""What a user is told when something is wrong: one line, exit code 1, no traceback."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# An environment variable: the file to which a process writes the error that ends it, for the process that started it.
FAILURE_FILE = "KDFLOW_FAILURE_FILE"


class UserError(ValueError):
    """Bad input. The message is one line: the field or file, what is wrong, what is allowed.

    `retryable` is true where the same command may succeed the next time, such as after a process was killed.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


def is_retryable(error: Exception) -> bool:
    """Return whether the same command may succeed the next time."""
    return isinstance(error, UserError) and error.retryable


def write_failure(message: str, *, retryable: bool) -> None:
    """Write an error to the file that FAILURE_FILE names, if it is set."""
    if file := os.environ.get(FAILURE_FILE):
        with suppress(OSError):  # a full disk: the reader then has the exit code only
            Path(file).write_text(json.dumps({"message": message, "retryable": retryable}))


def read_failure(file: Path) -> UserError | None:
    """Return the error that `write_failure` wrote to `file`, in one line; None if it wrote none, or not all of it."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    lines = "; ".join(content["message"].splitlines())
    return UserError(escape_control(lines), retryable=content["retryable"])


def one_line(error: Exception) -> str:
    """An error's text without its line breaks."""
    return " ".join(str(error).split())


def escape_control(text: str) -> str:
    """Text for a terminal: what is no character to be seen, and might steer it, as an escape."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def decode_filename(path: bytes) -> str:
    """A file's name as text; what is no UTF-8 in it as its bytes in hex."""
    return path.decode(errors="backslashreplace")


def user_message(error: Exception) -> str | None:
    """One line for an error that a user can do something about, None for a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):  # a full disk, a missing right, a broken mount
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        return f"{error.filename}: {reason}" if error.filename else reason
    return None


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn bad input into one line on stderr and exit code 1, Ctrl-C into one line and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        print(
            "interrupted: what was trained so far is kept, the same command goes on from there",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    except Exception as error:
        line = user_message(error)
        if line is None:
            raise
        for part in line.splitlines():
            print(f"error: {escape_control(part)}", file=sys.stderr)
        write_failure(line, retryable=is_retryable(error))
        raise SystemExit(1) from None
