"""Reading of tar archives in place, without unpacking. Hostile members are refused before they are read."""

from __future__ import annotations

import contextlib
import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from kdflow.core.errors import UserError, one_line

MAX_HEADER = 2**20  # bytes


def check_md5(archive: Path, expected: str | None) -> None:
    """Compare an archive with the md5 of recipes/datasets.yaml.

    Raises:
        UserError: the md5 differs, or the recipe has none.
    """
    if expected is None:
        raise UserError(f"recipes/datasets.yaml: md5 is needed to check {archive}")
    with archive.open("rb") as file:
        actual = hashlib.file_digest(file, "md5").hexdigest()
    if actual != expected:
        raise UserError(f"{archive}: md5 is {actual}, expected {expected}: damaged, cut short, or another archive")


class MemberCheck:
    """Checks the members of one archive one by one.

    Args:
        source: the archive's name for messages.
        folder: the folder that all members must be in; empty for the archive's root.
        max_size: bytes that a member may have.
    """

    def __init__(self, source: str, folder: str, max_size: int) -> None:
        self.source, self.folder, self.max_size = source, folder, max_size
        self.names: set[str] = set()

    def __call__(self, name: str, size: int, *, link: bool) -> str:
        """Check the next member and return its name relative to `folder`.

        Raises:
            UserError: it is outside of `folder`, a link or a device, too large, or a duplicate.
        """
        path, folder = PurePosixPath(name), PurePosixPath(self.folder)
        reason = None
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.is_relative_to(folder):
            reason = f"is outside of {self.folder or 'the archive'}/"
        elif link:
            reason = "is a link, or not a file"
        elif not 0 <= size <= self.max_size:
            reason = f"has {size:,} bytes, at most {self.max_size:,} are allowed"
        elif str(path) in self.names:
            reason = "is a duplicate"
        if reason is not None:
            raise UserError(f"{self.source}: refused: {name!r} {reason}")
        self.names.add(str(path))
        return str(path.relative_to(folder))


class _HeaderReader:
    """The file from which tarfile reads headers, with a limit of their size, which the archive itself states."""

    def __init__(self, file: BufferedIOBase) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes, at most {MAX_HEADER:,} are allowed")
        return self.file.read(size)


def tar_members(
    file: BufferedIOBase, check: MemberCheck, end: int | None = None
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the files of the tar that begins at `file`'s position, by their names relative to `check.folder`.

    `offset_data` counts from the beginning of `file`. The caller may move `file`'s position between two members.

    Args:
        end: byte of `file` at which the tar ends; None if unknown, as in a compressed file.

    Raises:
        UserError: the archive is damaged, or a member is refused.
    """
    with archive_errors(check.source):
        for info in tarfile.TarFile(fileobj=cast("BinaryIO", _HeaderReader(file))):
            regular = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse()
            name = check(info.name, info.size, link=not regular and not info.isdir())
            if end is not None and info.offset_data + info.size > end:
                raise UserError(f"{check.source}: cut short within {info.name!r}")
            if regular:
                yield name, info


def read_member(file: BufferedIOBase, info: tarfile.TarInfo, source: str) -> bytes:
    """Read the content of one member.

    Raises:
        UserError: the archive is damaged or cut short.
    """
    with archive_errors(source):
        file.seek(info.offset_data)
        content = file.read(info.size)
    if len(content) < info.size:
        raise UserError(f"{source}: cut short within {info.name!r}")
    return content


@contextlib.contextmanager
def archive_errors(source: str) -> Iterator[None]:
    """Turn the exceptions of a damaged archive into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError) as error:
        raise UserError(f"{source}: damaged, or not an archive ({one_line(error)})") from None
