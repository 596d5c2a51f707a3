"""Downloads from a local web server with the faults of real ones."""

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
    """Serves CONTENT with the fault that the path names. Records the requests."""

    requests: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self):  # noqa: N802
        kind, byte_range = self.path.strip("/").split("/")[0], self.headers.get("Range")
        type(self).requests.append((kind, byte_range))
        getattr(self, kind)(int(byte_range[6:-1]) if byte_range else 0)

    def head(self, code, length=None, **headers):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def send(self, begin, content=CONTENT, upto=None):
        """Send the content from byte `begin` on and close the connection after `upto` bytes."""
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

    def redirects_to_itself(self, begin):
        self.head(302, 0, Location=self.path)

    def redirects_to_a_file(self, begin):
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
def short_timeouts(monkeypatch):
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.4)
    monkeypatch.setattr(download, "CONNECT_TIMEOUT", 2.0)
    Faulty.requests = []


def fetched(server, folder, *kinds, sha256=SHA256, md5=""):
    """Return the log of a download, or the message of its failure; checks the file in both cases."""
    with (folder / "log").open("w") as log:
        try:
            urls = [kind if "//" in kind else f"{server}/{kind}/file" for kind in kinds]
            with Display("fetch", Console(file=log, width=500)) as display:
                download.download(DownloadSpec(urls, sha256, len(CONTENT), md5), folder / "w", display)
        except UserError as error:
            assert "\n" not in str(error)
            assert not (folder / "w").exists()
            return str(error)
    assert (folder / "w").read_bytes() == CONTENT
    assert sorted(file.name for file in folder.iterdir()) == ["log", "w"]
    return (folder / "log").read_text()


@pytest.mark.parametrize("kind", ["good", "without_ranges", "without_length", "breaks", "stalls", "moved", "slow"])
def test_the_first_address_that_works_is_used(kind, server, tmp_path):
    log = fetched(server, tmp_path, kind, "missing")
    assert "w  100 %  0.3 of 0.3 MB" in log
    assert "404" not in log


FAILURES = {
    "missing": "404 Not Found",
    "broken": "500 Internal Server Error",
    "redirects_to_itself": "redirects",
    "redirects_to_a_file": "No connection adapters",
    "page": f"sha256 is {hashlib.sha256(b'<html>sign in</html>' * 10).hexdigest()}, expected {SHA256}: deleted",
    "wrong": "deleted",
    "endless": "sends more than the 300,000 bytes expected",
    "longer": "has 300,004 bytes, more than the 300,000 expected",
    "silent": "no answer within 0.4 s",
    "trickles": "less than 1,000 bytes a second",
    "breaks_at_once": "IncompleteRead",
    "breaks_without_ranges": "IncompleteRead",
    "http://127.0.0.1:9/file": "Connection refused",
    "http://nowhere.invalid/file": "nowhere.invalid",
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failing_address_is_shown_and_the_next_one_used(kind, server, tmp_path):
    log = fetched(server, tmp_path, kind, "good")
    (line,) = [line for line in log.splitlines() if kind in line]
    assert FAILURES[kind] in line
    assert "w  100 %" in log


def test_if_all_addresses_fail_all_reasons_are_given_and_no_wrong_file_stays(server, tmp_path):
    message = fetched(server, tmp_path, "missing", "wrong", "endless")
    assert all(FAILURES[kind] in message for kind in ("missing", "wrong", "endless"))
    assert [file.name for file in tmp_path.iterdir()] == ["log"]


def test_received_bytes_are_kept_and_the_download_resumes_at_another_address(server, tmp_path):
    message = fetched(server, tmp_path, "breaks_without_ranges")
    assert "120,000 bytes are kept, the next attempt resumes there" in message
    Faulty.requests = []
    fetched(server, tmp_path, "good")
    assert Faulty.requests == [("good", "bytes=120000-")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    part=st.sampled_from([b"", CONTENT, CONTENT + b"x", b"junk", CONTENT[:-1], bytes(len(CONTENT))])
    | st.integers(1, len(CONTENT)).map(lambda n: CONTENT[:n]),
    kind=st.sampled_from(["good", "without_ranges", "breaks", "without_length", "moved"]),
)
def test_any_leftover_of_an_earlier_attempt_ends_with_the_right_bytes(part, kind, server, tmp_path):
    (tmp_path / "w").unlink(missing_ok=True)
    (tmp_path / "w.part").write_bytes(part)
    fetched(server, tmp_path, kind)


def test_a_range_that_was_not_requested_is_refused(server, tmp_path):
    (tmp_path / "w.part").write_bytes(CONTENT[:1000])
    assert "another range than requested" in fetched(server, tmp_path, "other_range")


def test_the_beginning_of_a_hash_is_enough(server, tmp_path):
    fetched(server, tmp_path, "good", sha256=SHA256[:8])
    (tmp_path / "w").unlink()
    assert "deleted" in fetched(server, tmp_path, "wrong", sha256=SHA256[:8])


def test_md5_takes_the_place_of_sha256_or_is_checked_beside_it(server, tmp_path):
    md5 = hashlib.md5(CONTENT).hexdigest()
    for sha256 in ("", SHA256):
        fetched(server, tmp_path, "good", sha256=sha256, md5=md5)
        (tmp_path / "w").unlink()
        message = fetched(server, tmp_path, "good", sha256=sha256, md5="0" * 32)
        assert f"md5 is {md5}, expected {'0' * 32}: deleted" in message
    assert "sha256 is" in fetched(server, tmp_path, "good", sha256="0" * 64, md5=md5)


def test_an_existing_file_stays_until_the_download_is_complete(server, tmp_path):
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
def test_a_killed_download_resumes(how, server, tmp_path):
    command = [sys.executable, "-c", FETCH, f"{server}/slow/file", SHA256, str(len(CONTENT)), str(tmp_path / "w")]
    running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    part = tmp_path / "w.part"
    while not (part.exists() and part.stat().st_size):
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(how)
    running.wait()
    received = part.stat().st_size
    assert 0 < received < len(CONTENT)
    assert not (tmp_path / "w").exists()
    fetched(server, tmp_path, "good")
    assert Faulty.requests[-1] == ("good", f"bytes={received}-")
