"""Archives are read in place: nothing is unpacked, and what no honest archive holds is refused before it is read."""

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

LARGEST_HEADER = 2**20  # bytes


def check_md5(archive: Path, expected: str | None) -> None:
    """Look whether it is the archive that recipes/datasets.yaml means.

    Raises:
        UserError: it is another, or the recipe does not say.
    """
    if expected is None:
        raise UserError(f"recipes/datasets.yaml: md5 is needed to check {archive}")
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        raise UserError(f"{archive}: md5 is {found}, expected {expected}: damaged, cut short, or another archive")


class MemberCheck:
    """The members of one archive as they are met; `source` names it, `largest` is what one may have, in bytes."""

    def __init__(self, source: str, within: str, largest: int) -> None:
        self.source, self.within, self.largest = source, within, largest
        self.seen: set[str] = set()

    def add(self, name: str, size: int, *, link: bool) -> str:
        """Take note of a member and return its name within the folder `within`.

        Raises:
            UserError: it lies elsewhere, is a link or a device, is too large, or was there before.
        """
        path = PurePosixPath(name)
        inside = PurePosixPath(self.within)
        why = None
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.is_relative_to(inside):
            why = f"is outside of {self.within or 'the archive'}/"
        elif link:
            why = "is a link, or no file at all"
        elif not 0 <= size <= self.largest:
            why = f"would have {size:,} bytes, {self.largest:,} allowed"
        elif str(path) in self.seen:
            why = "is there twice"
        if why is not None:
            raise UserError(f"{self.source}: refused: {name!r} {why}")
        self.seen.add(str(path))
        return str(path.relative_to(inside))


class _Limited:
    """The file as tarfile sees it, which reads headers from it, of any size that they say themselves."""

    def __init__(self, file: BufferedIOBase) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes, {LARGEST_HEADER:,} allowed")
        return self.file.read(size)


def tar_members(
    file: BufferedIOBase, guard: MemberCheck, end: int | None = None
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files of the tar that begins at `file`'s position, by their names within `guard.within`.

    Their `offset_data` counts from the beginning of `file`; between two of them `file` may be read anywhere.

    Args:
        end: where the tar ends in `file`, in bytes; None: unknown, as of a packed one.

    Raises:
        UserError: it is damaged, or a member is unfit.
    """
    with archive_errors(guard.source):
        for info in tarfile.TarFile(fileobj=cast("BinaryIO", _Limited(file))):
            plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse()
            name = guard.add(info.name, info.size, link=not plain and not info.isdir())
            if end is not None and info.offset_data + info.size > end:
                raise UserError(f"{guard.source}: cut short within {info.name!r}")
            if plain:
                yield name, info


def read_member(file: BufferedIOBase, info: tarfile.TarInfo, source: str) -> bytes:
    """The bytes of one member.

    Raises:
        UserError: they are not all there.
    """
    with archive_errors(source):
        file.seek(info.offset_data)
        found = file.read(info.size)
    if len(found) < info.size:
        raise UserError(f"{source}: cut short within {info.name!r}")
    return found


@contextlib.contextmanager
def archive_errors(source: str) -> Iterator[None]:
    """Whatever reading an archive may raise, as one line."""
    try:
        yield
    except UserError:
        raise
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError) as error:
        raise UserError(f"{source}: damaged, or not an archive ({one_line(error)})") from None
