"""Downloads from a web server of this machine that does what servers of the world do."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT
from rich.console import Console
from web import Quiet, serving

from kdflow.core import download
from kdflow.core.download import DownloadSpec
from kdflow.core.errors import UserError
from kdflow.core.progress import Display

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Faulty(Quiet):
    """Serves CONTENT; the path says with which fault. Remembers what it was asked."""

    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self):  # noqa: N802
        kind, wanted = self.path.strip("/").split("/")[0], self.headers.get("Range")
        type(self).asked.append((kind, wanted))
        getattr(self, kind)(int(wanted[6:-1]) if wanted else 0)

    def head(self, code, length=None, **headers):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def send(self, begin, content=CONTENT, upto=None):
        """Content from `begin` on; the connection ends after `upto` bytes of it."""
        if begin >= len(content):
            self.head(416, 0)
        elif begin:
            span = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            self.head(206, len(content) - begin, Content_Range=span)
        else:
            self.head(200, len(content))
        self.wfile.write(content[begin:][:upto])

    def good(self, begin):
        self.send(begin)

    def without_ranges(self, begin):
        self.send(0)

    def without_length(self, begin):
        self.head(200)
        self.wfile.write(CONTENT)

    def breaks(self, begin):
        self.send(begin, upto=120_000)

    def breaks_at_once(self, begin):
        self.send(begin, upto=0)

    def breaks_without_ranges(self, begin):
        self.send(0, upto=120_000)

    def missing(self, begin):
        self.head(404, 0)

    def broken(self, begin):
        self.head(500, 0)

    def moved(self, begin):
        self.head(302, 0, Location="/good/file")

    def round_and_round(self, begin):
        self.head(302, 0, Location=self.path)

    def elsewhere(self, begin):
        self.head(302, 0, Location="file:///etc/hostname")

    def page(self, begin):
        self.send(begin, b"<html>sign in</html>" * 10)

    def wrong(self, begin):
        self.send(begin, bytes(len(CONTENT)))

    def endless(self, begin):
        self.head(200)
        for _ in range(1000):
            self.wfile.write(bytes(10_000))

    def longer(self, begin):
        self.send(begin, CONTENT + b"more")

    def other_range(self, begin):
        self.head(206, 10, Content_Range="bytes 5-14/300000")
        self.wfile.write(bytes(10))

    def stalls(self, begin):
        self.send(begin, upto=120_000)
        self.wfile.flush()
        time.sleep(1)

    def silent(self, begin):
        time.sleep(1)

    def trickles(self, begin):
        self.head(200, len(CONTENT))
        for at in range(40):
            self.wfile.write(CONTENT[at : at + 1])
            time.sleep(0.05)

    def slow(self, begin):
        self.head(200, len(CONTENT))
        for at in range(0, len(CONTENT), 30_000):
            self.wfile.write(CONTENT[at : at + 30_000])
            time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("web"), Faulty) as address:
        yield address


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.4)
    monkeypatch.setattr(download, "CONNECT_TIMEOUT", 2.0)
    Faulty.asked = []


def fetched(server, folder, *kinds, sha256=SHA256):
    """Whether the file came, and what was said meanwhile."""
    with (folder / "log").open("w") as log:
        try:
            urls = [kind if "//" in kind else f"{server}/{kind}/file" for kind in kinds]
            with Display("fetch", Console(file=log, width=500)) as display:
                download.download(DownloadSpec(urls, sha256, len(CONTENT)), folder / "w", display)
        except UserError as error:
            assert "\n" not in str(error)
            assert not (folder / "w").exists()
            return str(error)
    assert (folder / "w").read_bytes() == CONTENT
    assert sorted(file.name for file in folder.iterdir()) == ["log", "w"]
    return (folder / "log").read_text()


@pytest.mark.parametrize("kind", ["good", "without_ranges", "without_length", "breaks", "stalls", "moved", "slow"])
def test_what_does_come_is_taken_from_the_first_address(kind, server, tmp_path):
    said = fetched(server, tmp_path, kind, "missing")
    assert "w  100 %  0.3 of 0.3 MB" in said
    assert "404" not in said


FAILURES = {
    "missing": "404 Not Found",
    "broken": "500 Internal Server Error",
    "round_and_round": "redirects",
    "elsewhere": "No connection adapters",
    "page": f"sha256 is {hashlib.sha256(b'<html>sign in</html>' * 10).hexdigest()}, expected {SHA256}: thrown away",
    "wrong": "thrown away",
    "endless": "sends more than the 300,000 bytes expected",
    "longer": "has 300,004 bytes, expected 300,000",
    "silent": "no answer within 0.4 s",
    "trickles": "less than 1,000 bytes a second",
    "breaks_at_once": "IncompleteRead",
    "breaks_without_ranges": "IncompleteRead",
    "http://127.0.0.1:9/file": "Connection refused",
    "http://nowhere.invalid/file": "nowhere.invalid",
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failing_address_is_told_and_the_next_one_asked(kind, server, tmp_path):
    said = fetched(server, tmp_path, kind, "good")
    (line,) = [line for line in said.splitlines() if kind in line]
    assert FAILURES[kind] in line
    assert "w  100 %" in said


def test_where_none_gives_it_all_reasons_are_told_and_nothing_wrong_stays(server, tmp_path):
    said = fetched(server, tmp_path, "missing", "wrong", "endless")
    assert all(FAILURES[kind] in said for kind in ("missing", "wrong", "endless"))
    assert [file.name for file in tmp_path.iterdir()] == ["log"]


def test_what_came_is_kept_and_gone_on_with_at_another_address(server, tmp_path):
    said = fetched(server, tmp_path, "breaks_without_ranges")
    assert "120,000 bytes are kept, the next attempt goes on from there" in said
    Faulty.asked = []
    fetched(server, tmp_path, "good")
    assert Faulty.asked == [("good", "bytes=120000-")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    part=st.sampled_from([b"", CONTENT, CONTENT + b"x", b"junk", CONTENT[:-1], bytes(len(CONTENT))])
    | st.integers(1, len(CONTENT)).map(lambda n: CONTENT[:n]),
    kind=st.sampled_from(["good", "without_ranges", "breaks", "without_length", "moved"]),
)
def test_whatever_an_earlier_attempt_left_the_right_bytes_come(part, kind, server, tmp_path):
    (tmp_path / "w").unlink(missing_ok=True)
    (tmp_path / "w.part").write_bytes(part)
    fetched(server, tmp_path, kind)


def test_another_part_than_was_asked_for_is_refused(server, tmp_path):
    (tmp_path / "w.part").write_bytes(CONTENT[:1000])
    assert "another part than was asked for" in fetched(server, tmp_path, "other_range")


def test_the_beginning_of_a_hash_is_enough(server, tmp_path):
    fetched(server, tmp_path, "good", sha256=SHA256[:8])
    (tmp_path / "w").unlink()
    assert "thrown away" in fetched(server, tmp_path, "wrong", sha256=SHA256[:8])


def test_a_file_that_is_there_stays_until_a_better_one_is_whole(server, tmp_path):
    (tmp_path / "w").write_bytes(b"old")
    with pytest.raises(UserError), Display("fetch", Console(quiet=True)) as display:
        download.download(DownloadSpec([f"{server}/wrong/file"], SHA256, len(CONTENT)), tmp_path / "w", display)
    assert (tmp_path / "w").read_bytes() == b"old"


FETCH = """
import sys
from pathlib import Path
from kdflow.core.download import DownloadSpec, download
from kdflow.core.progress import Display
url, sha256, size, file = sys.argv[1:]
with Display("fetch") as display:
    download(DownloadSpec([url], sha256, int(size)), Path(file), display)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_goes_on_where_it_was(how, server, tmp_path):
    command = [sys.executable, "-c", FETCH, f"{server}/slow/file", SHA256, str(len(CONTENT)), str(tmp_path / "w")]
    running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    part = tmp_path / "w.part"
    while not (part.exists() and part.stat().st_size):
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(how)
    running.wait()
    held = part.stat().st_size
    assert 0 < held < len(CONTENT)
    assert not (tmp_path / "w").exists()
    fetched(server, tmp_path, "good")
    assert Faulty.asked[-1] == ("good", f"bytes={held}-")
