"""Files that are either whole or not there, and their hashes."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is fsynced and renamed over `path`.

    When the block fails, `path` stays as it was and nothing is left beside it. What a killed process leaves, the
    next one that writes `path` removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = _beside(path)
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.chmod(0o644)
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else the rename itself may be lost with the power
        finally:
            os.close(folder)
    except OSError as error:
        if error.filename is None:  # a full disk does not say which file it cut short
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)
        os.close(handle)


def _beside(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, locked while its writer lives; those of writers that were killed are removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{PART}"):
        with suppress(OSError), left.open() as file:  # locked, or renamed meanwhile: its writer lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else another writer came between and took it for one of the dead
            return handle, Path(name)
        os.close(handle)


@contextmanager
def exclusive_folder(folder: Path, what: str, tell: Callable[[str], None]) -> Iterator[Path]:
    """Hold a scratch folder: a second process that wants it for the same work waits, then goes on from there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # let go when the process ends, however it ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"another process is at {what}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path`, all of it or nothing."""
    with atomic_write(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` as UTF-8, all of it or nothing."""
    write_bytes(path, content.encode())


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
