"""Downloads that resume, try several addresses and check a hash."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdflow import __version__
from kdflow.core import files
from kdflow.core.errors import UserError, one_line
from kdflow.core.progress import Display, DownloadProgress, Note, Pace

CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0  # seconds until the server answers, and between two bytes
MIN_SPEED = 1000  # bytes per second, over any `READ_TIMEOUT` seconds
MAX_RECONNECTS = 5  # reconnections to one address, each after some bytes came
CHUNK = 2**18  # bytes


@dataclass(frozen=True)
class DownloadSpec:
    """A file to download.

    `sha256` and `md5` are hashes in hex or the beginnings of hashes; an empty one is not checked. `size` is the size
    in bytes, or an upper bound of it.
    """

    urls: Sequence[str]
    sha256: str
    size: int
    md5: str = ""

    def mismatch(self, file: Path) -> str | None:
        """Return how a hash of `file` differs from the expected one, or None if all are right."""
        for algorithm, expected in (("sha256", self.sha256), ("md5", self.md5)):
            if expected:
                with file.open("rb") as content:
                    actual = hashlib.file_digest(content, algorithm).hexdigest()
                if not actual.startswith(expected):
                    return f"{algorithm} is {actual}, expected {expected}"
        return None


class _RefusedError(Exception):
    """The content of an address is not the expected file, or does not arrive."""


def download(spec: DownloadSpec, file: Path, display: Display) -> None:
    """Download to `file` from the first address that works; each failure is shown in a line.

    Received bytes are kept in `<file>.part`. The next attempt resumes there, also from another address, and the hash
    of the whole file decides. A file with a wrong hash is deleted and never gets the final name.

    Raises:
        UserError: no address works.
    """
    part = file.with_name(file.name + files.PART)
    file.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in spec.urls:
        try:
            _download_from(url, spec, part, display)
        except _RefusedError as error:
            reasons.append(f"{url}: {error}")
        else:
            with files.atomic_write(file) as beside:
                shutil.move(part, beside)
            return
        display.show(Note(file.name, reasons[-1]))
    kept = f"; {part.stat().st_size:,} bytes are kept, the next attempt resumes there" if part.exists() else ""
    raise UserError(f"{file.name}: download failed: {'; '.join(reasons)}{kept}")


def _download_from(url: str, spec: DownloadSpec, part: Path, display: Display) -> None:
    """Download to `part` from one address, reconnecting after a lost connection, until the hash is right."""
    import requests
    import urllib3

    for attempt in range(MAX_RECONNECTS + 1):
        size_before = _size(part)
        try:
            resumed_at = _receive(url, spec, part, display)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if attempt == MAX_RECONNECTS or _size(part) <= size_before:
                raise _RefusedError(_reason(error)) from None
            continue
        mismatch = spec.mismatch(part)
        if mismatch is None:
            return
        part.unlink()
        if resumed_at == 0:
            raise _RefusedError(f"{mismatch}: deleted")
        # The bytes of an earlier attempt may have been the wrong ones: download again from the beginning.
    raise _RefusedError("the hash is wrong after every attempt")


def _receive(url: str, spec: DownloadSpec, part: Path, display: Display) -> int:
    """Append the missing bytes to `part`; returns the byte at which the download resumed."""
    import requests

    start = _size(part)
    headers = {"Accept-Encoding": "identity", "User-Agent": f"kdflow/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return start  # the file is complete or too long: its hash decides
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            start = 0  # the server does not support ranges
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise _RefusedError("the server sent another range than requested")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else spec.size
        if total > spec.size:
            raise _RefusedError(f"has {total:,} bytes, more than the {spec.size:,} expected")
        name, pace, window = part.name.removesuffix(files.PART), Pace(total), Pace(total)
        pace.update(start)
        window.update(start)
        with part.open("ab" if start else "wb") as out:
            while chunk := response.raw.read1(CHUNK):
                done = pace.done + len(chunk)
                if done > spec.size:
                    part.unlink()
                    raise _RefusedError(f"sends more than the {spec.size:,} bytes expected")
                out.write(chunk)
                pace.update(done)
                display.show(DownloadProgress(name, done, total, pace.per_second, pace.seconds_left))
                window.update(done)
                if window.seconds >= READ_TIMEOUT:
                    if window.per_second < MIN_SPEED:
                        raise _RefusedError(f"less than {MIN_SPEED:,} bytes a second")
                    window = Pace(total)
                    window.update(done)
    return start


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _reason(error: Exception) -> str:
    """Return the innermost of the exceptions that requests and urllib3 wrap into each other, in a line."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout | requests.ReadTimeout):
        return f"no answer within {READ_TIMEOUT if isinstance(error, requests.ReadTimeout) else CONNECT_TIMEOUT:g} s"
    inner = getattr(error.args[0], "reason", error) if error.args else error
    return one_line(inner if isinstance(inner, Exception) else error)[:160]
