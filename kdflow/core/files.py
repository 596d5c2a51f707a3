"""Atomic writes, locks and hashes of files."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdflow.core.errors import UserError, escape_control

PART = ".part"  # suffix of files that are being written


def expand_home(path: str | Path) -> Path:
    """Return a path with a leading `~` or `~USER` replaced by that user's home folder.

    Raises:
        UserError: there is no such user, or the path has a null character.
    """
    if "\0" in str(path):
        raise UserError("a path cannot have a null character")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{escape_control(str(path))}: no such user, or no home folder") from None


def output_file(path: Path) -> Path:
    """Return the file that a user's path for an output names: links are followed, so that they stay.

    Raises:
        UserError: it exists and is not a regular file, but a folder, a device or a pipe.
    """
    _check_is_file(path)
    return Path(os.path.realpath(path))


def _check_is_file(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: exists and is not a regular file; choose another name")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path` to write to; on success, fsync it and rename it to `path`.

    If the block fails, `path` is unchanged and the temporary file is removed. The temporary file of a process that was
    killed is removed by the next write to `path`. A link is replaced: DVC may have put it there, and it then points to
    DVC's cache.

    Raises:
        UserError: `path` exists and is neither a file nor a link.
    """
    if not path.is_symlink():
        _check_is_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _temporary_file(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # otherwise a power failure may undo the rename
        finally:
            os.close(folder)
    except OSError as error:
        if error.filename is None:  # the error of a full disk has no file name
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _temporary_file(path: Path) -> tuple[int, Path]:
    """Create a file beside `path` that is locked while its process lives; remove the files of killed processes."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*{PART}"):
        with suppress(OSError), old.open() as file:  # it is locked or was renamed: its process lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            old.unlink()
    while True:
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}{PART}"
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)  # less the umask
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # otherwise another process removed it before it was locked
            return handle, temporary
        os.close(handle)


@contextmanager
def exclusive_folder(folder: Path, what: str, report: Callable[[str], None]) -> Iterator[Path]:
    """Lock a folder: a second process that needs it for the same work, `what`, waits, and then resumes that work."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # the system releases it in any case when the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"another process works on {what}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` as UTF-8, atomically."""
    write_bytes(path, content.encode())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
