"""A file from one of several addresses: gone on with where it was, checked by its hash, whole or not there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdflow import __version__
from kdflow.core import files
from kdflow.core.errors import UserError, one_line
from kdflow.core.progress import Display, DownloadProgress, Note

CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0  # seconds to answer, and between two bytes
SLOWEST = 1000  # bytes a second, over any `READ_TIMEOUT` seconds
MAX_RECONNECTS = 5  # how often the connection to one address may break while it does deliver
CHUNK = 2**18


@dataclass(frozen=True)
class DownloadSpec:
    """What is to be downloaded: its hash or how that begins, in hex, and its bytes, exactly or at most."""

    urls: Sequence[str]
    sha256: str
    size: int


class _RefusedError(Exception):
    """What came is not what is wanted."""


def download(wanted: DownloadSpec, file: Path, display: Display) -> None:
    """Download to `file`, asking the addresses in turn; each failure is told in a line.

    What came so far stays in `<file>.part`, and the next attempt, also at another address, goes on from there: the
    hash of the whole decides. Bytes of another hash are thrown away, they never have the final name.

    Raises:
        UserError: no address gave it.
    """
    part = file.with_name(file.name + files.PART)
    file.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in wanted.urls:
        try:
            _from(url, wanted, part, display)
        except _RefusedError as error:
            reasons.append(f"{url}: {error}")
        else:
            with files.atomic_write(file) as beside:
                shutil.move(part, beside)
            return
        display.show(Note(file.name, reasons[-1]))
    kept = f"; {part.stat().st_size:,} bytes are kept, the next attempt goes on from there" if part.exists() else ""
    raise UserError(f"{file.name}: no address gave it: {'; '.join(reasons)}{kept}")


def _from(url: str, wanted: DownloadSpec, part: Path, display: Display) -> None:
    """Download to `part` from one address until the hash is right, going on where the connection breaks."""
    import requests
    import urllib3

    for attempt in range(MAX_RECONNECTS + 1):
        held = _size(part)
        try:
            begun = _receive(url, wanted, part, display)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if attempt == MAX_RECONNECTS or _size(part) <= held:
                raise _RefusedError(_reason(error)) from None
            continue
        found = files.sha256(part)
        if found.startswith(wanted.sha256):
            return
        part.unlink()
        if begun == 0:
            raise _RefusedError(f"sha256 is {found}, expected {wanted.sha256}: thrown away")
        # What was there before may have been the wrong part: once more from the beginning.
    raise _RefusedError("another hash after every attempt")


def _receive(url: str, wanted: DownloadSpec, part: Path, display: Display) -> int:
    """Add to `part` what is missing; returns how many of the bytes that were there it went on from."""
    import requests

    held = _size(part)
    headers = {"Accept-Encoding": "identity", "User-Agent": f"kdflow/{__version__}"}
    if held:
        headers["Range"] = f"bytes={held}-"
    began = time.monotonic()
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            return held  # all of it is there, or too much: the hash says which
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            held = 0  # the server does not know of parts
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {held}-"):
            raise _RefusedError("answered with another part than was asked for")
        length = answer.headers.get("Content-Length", "")
        total = held + int(length) if length.isdigit() else wanted.size
        if total > wanted.size:
            raise _RefusedError(f"has {total:,} bytes, expected {wanted.size:,}")
        pace = _Pace(part.name.removesuffix(files.PART), held, total, began, display)
        with part.open("ab" if held else "wb") as out:
            while chunk := answer.raw.read1(CHUNK):
                if pace.done + len(chunk) > wanted.size:
                    part.unlink()
                    raise _RefusedError(f"sends more than the {wanted.size:,} bytes expected")
                out.write(chunk)
                pace.add(len(chunk))
    return held


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _reason(error: Exception) -> str:
    """The innermost of what requests and urllib3 wrap into each other, in a line."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout | requests.ReadTimeout):
        return f"no answer within {READ_TIMEOUT if isinstance(error, requests.ReadTimeout) else CONNECT_TIMEOUT:g} s"
    inner = getattr(error.args[0], "reason", error) if error.args else error
    return one_line(inner if isinstance(inner, Exception) else error)[:160]


class _Pace:
    """Shows how far a download is; ends one that hardly moves."""

    def __init__(self, name: str, done: int, total: int, began: float, display: Display) -> None:
        self.name, self.done, self.total, self.display = name, done, total, display
        self.began, self.first = began, done
        self.mark, self.marked = self.began, done

    def add(self, count: int) -> None:
        """So many bytes more are there."""
        self.done += count
        now = time.monotonic()
        speed = (self.done - self.first) / max(now - self.began, 1e-6)
        self.display.show(DownloadProgress(self.name, self.done, self.total, speed))
        if now - self.mark >= READ_TIMEOUT:
            if self.done - self.marked < SLOWEST * READ_TIMEOUT:
                raise _RefusedError(f"less than {SLOWEST:,} bytes a second")
            self.mark, self.marked = now, self.done
