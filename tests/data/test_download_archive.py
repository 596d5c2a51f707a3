"""Downloads of dataset archives: read and kept, resumed, or refused in one line."""

import io
import socket
import threading
from pathlib import Path
from typing import ClassVar

import pytest
from cifar_files import ARCHIVE, SPEC, pack, refused, with_values, write
from web import Quiet, serving

from kdflow.data import prepare
from kdflow.data.readers import cifar100


class _Short(Quiet):
    """Closes the connection after 1,000 bytes."""

    def copyfile(self, source: object, outputfile: io.BytesIO) -> None:
        outputfile.write(source.read(1000))


class _Resuming(Quiet):
    """Serves the requested range. Records the requested ranges."""

    ranges: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:  # noqa: N802
        type(self).ranges.append(self.headers["Range"])
        content = Path(self.translate_path(self.path)).read_bytes()
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:])


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A folder with the archive, to be served; and the archive's md5."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path / "source")
    folder = tmp_path / "served"
    folder.mkdir()
    return folder, pack(tmp_path / "source", folder / ARCHIVE)


def files_in(downloads: Path) -> list[str]:
    """Return the names of the files in the downloads folder, without its lock."""
    return sorted(file.name for file in downloads.iterdir() if file.name != "lock")


def test_download_is_read_and_kept(tmp_path, packed):
    folder, md5 = packed
    downloads = tmp_path / "downloads"
    with serving(folder) as address:
        url = f"{address}/{ARCHIVE}"
        digest = prepare("c", with_values(SPEC, url=url, md5=md5), None, downloads, tmp_path / "c.h5")
    assert digest == prepare("c", SPEC, tmp_path / "source", downloads, tmp_path / "c2.h5")
    assert files_in(downloads) == [ARCHIVE]
    # Without the server, the kept archive is used again.
    assert digest == prepare("c", with_values(SPEC, url=url, md5=md5), None, downloads, tmp_path / "c3.h5")


def test_a_damaged_earlier_download_is_replaced(tmp_path, packed):
    folder, md5 = packed
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / ARCHIVE).write_bytes((folder / ARCHIVE).read_bytes()[:1000])
    with serving(folder) as address:
        url = f"{address}/{ARCHIVE}"
        prepare("c", with_values(SPEC, url=url, md5=md5), None, downloads, tmp_path / "c.h5")
    assert (downloads / ARCHIVE).read_bytes() == (folder / ARCHIVE).read_bytes()


def test_download_with_wrong_md5_is_refused_and_deleted(tmp_path, packed):
    folder, md5 = packed
    with serving(folder) as address:
        url = f"{address}/{ARCHIVE}"
        expected = (url, f"md5 is {md5}, expected {'0' * 32}", "or set data_folder to a local copy")
        refused(*expected, spec=with_values(SPEC, url=url, md5="0" * 32), folder=None, tmp_path=tmp_path)
    assert files_in(tmp_path / "downloads") == []


def test_download_that_is_cut_short_is_refused_and_resumed(tmp_path, packed):
    folder, md5 = packed
    with serving(folder, _Short) as address:
        url = f"{address}/{ARCHIVE}"
        expected = (url, "1,000 bytes are kept", "or set data_folder to a local copy")
        refused(*expected, spec=with_values(SPEC, url=url, md5=md5), folder=None, tmp_path=tmp_path)
    assert files_in(tmp_path / "downloads") == [f"{ARCHIVE}.part"]
    _Resuming.ranges = []
    with serving(folder, _Resuming) as address:
        url = f"{address}/{ARCHIVE}"
        prepare("c", with_values(SPEC, url=url, md5=md5), None, tmp_path / "downloads", tmp_path / "c.h5")
    assert _Resuming.ranges == ["bytes=1000-"]
    assert (tmp_path / "downloads" / ARCHIVE).read_bytes() == (folder / ARCHIVE).read_bytes()
    assert files_in(tmp_path / "downloads") == [ARCHIVE]


def test_download_that_is_too_large_is_refused(tmp_path, packed, monkeypatch):
    folder, md5 = packed
    monkeypatch.setattr(cifar100, "MAX_ARCHIVE", 1000)
    with serving(folder) as address:
        spec = with_values(SPEC, url=f"{address}/{ARCHIVE}", md5=md5)
        refused("more than the 1,000 expected", spec=spec, folder=None, tmp_path=tmp_path)
    assert files_in(tmp_path / "downloads") == []


def test_missing_page_is_refused(tmp_path, packed):
    folder, md5 = packed
    with serving(folder) as address:
        url = f"{address}/{ARCHIVE}"
        refused("404", spec=with_values(SPEC, url=url + ".gone", md5=md5), folder=None, tmp_path=tmp_path)
    assert files_in(tmp_path / "downloads") == []


def test_unreachable_url_is_refused(tmp_path, packed):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but not listening
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/{ARCHIVE}"
        refused(url, spec=with_values(SPEC, url=url, md5=packed[1]), folder=None, tmp_path=tmp_path)


@pytest.mark.parametrize(
    "url", ["cifar-100-python.tar.gz", "nothing://127.0.0.1/x", "http://[1", "http://127.0.0.1:x/"]
)
def test_malformed_url_is_refused(tmp_path, packed, url):
    refused(url, spec=with_values(SPEC, url=url, md5=packed[1]), folder=None, tmp_path=tmp_path)


def test_server_of_another_protocol_is_refused(tmp_path, packed):
    def talk(server: socket.socket) -> None:
        for _ in range(5):
            try:
                peer, _ = server.accept()
            except OSError:
                return
            with peer:
                peer.recv(4096)
                peer.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=talk, args=(server,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/{ARCHIVE}"
        refused(url, spec=with_values(SPEC, url=url, md5=packed[1]), folder=None, tmp_path=tmp_path)


@pytest.mark.parametrize("given", [{"url": "http://127.0.0.1/x"}, {"md5": "0" * 32}, {}])
def test_without_url_or_md5_there_is_no_download(tmp_path, given):
    refused("url", "md5", "data_folder", spec=with_values(SPEC, **given), folder=None, tmp_path=tmp_path)
