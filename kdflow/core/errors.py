"""Errors of the user: printed in one line without a traceback, with exit code 1."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# An environment variable: the file to which a process writes the error that ends it, for the process that started it.
FAILURE_FILE = "KDFLOW_FAILURE_FILE"


LOADER_HINT = (
    "use fewer compute.loader_workers (kdflow distill --workers; 0: none), or give a container more shared memory "
    "(--shm-size 1g)"
)
"""What helps where the processes that read image files end or fail."""


class UserError(ValueError):
    """Bad input. The message is one line: the field or file, the problem, and the allowed values.

    `retryable` is true where the same command may succeed the next time, such as after a process was killed.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the process got no more memory, from the system or for its libraries."""
    pattern = "allocate memory|bad_alloc|failed to map segment|can't start new thread|CUDA out of memory"
    return isinstance(error, MemoryError) or re.search(pattern, str(error)) is not None


def is_retryable(error: Exception) -> bool:
    """Return whether the same command may succeed the next time."""
    return (isinstance(error, UserError) and error.retryable) or _is_lost_worker(error)


def _is_lost_worker(error: Exception) -> bool:
    """Return whether this is torch's error for a loader worker that was killed or is silent."""
    return isinstance(error, RuntimeError) and str(error).startswith(("DataLoader worker (pid", "DataLoader timed out"))


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
    """Return the text of an error without line breaks."""
    return " ".join(str(error).split())


def shorten(value: object) -> str:
    """Return the representation of a value for a message: at most 100 characters in one line."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        text = f"a {type(value).__name__} that is too long to print"
    return text if len(text) <= 100 else f"{text[:100]}..."


def escape_control(text: str) -> str:
    """Escape the characters that do not print: in a terminal they might be control sequences."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def dotted(location: Iterable[int | str]) -> str:
    """Return the keys that lead to a value in a file, as a message names them: one line, joined by dots."""
    return ".".join(escape_control(str(part)) for part in location)


def decode_filename(path: bytes) -> str:
    """Decode a file name; bytes that are not UTF-8 become hex escapes."""
    return path.decode(errors="backslashreplace")


def user_message(error: Exception) -> str | None:
    """Return the message of an error that the user can correct; None for a defect of the program."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        reason = f" ({one_line(error)})" if str(error) else ""
        return f"not enough memory{reason}; raise its limit (`ulimit -v`, a container's memory), or lower batch_size"
    if isinstance(error, OSError):  # such as a full disk or a missing permission
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        if "temporary directory" in str(error.strerror):  # of tempfile; the number says only that there is no file
            reason = f"TMPDIR: {error.strerror}"
        return f"{error.filename}: {reason}" if error.filename else reason
    if _is_lost_worker(error):
        return f"a process that reads image files has ended or is silent ({one_line(error)}); {LOADER_HINT}"
    return None


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the process with one line on stderr: exit code 1 for bad input, 130 for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print(
            "interrupted: checkpoints are kept, and the same command resumes from them",
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
