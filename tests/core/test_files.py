"""Atomic writes: a file has its old content or its new content, never a part of it."""

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdflow.core import files
from kdflow.core.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_content_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.atomic_write(path) as beside:
        assert beside.parent == tmp_path, "a rename across file systems would not be atomic"
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", ["old", None])
def test_a_block_that_fails_leaves_everything_as_it_was(tmp_path, error, old):
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error), files.atomic_write(path) as beside:
        beside.write_text("half of the ne")
        raise error
    assert names(tmp_path) == ([] if old is None else ["a.txt"])
    assert old is None or path.read_text() == old


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_written_files_obey_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_new_folder_is_made(tmp_path):
    files.write_bytes(tmp_path / "b" / "c" / "a", b"x")
    assert (tmp_path / "b" / "c" / "a").read_bytes() == b"x"


def test_a_folder_in_the_way_is_an_error_and_nothing_is_left(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="a: exists and is not a regular file"):
        files.write_text(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"]


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_what_is_written_is_read(first, second):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        for content in (first, second):
            files.write_bytes(path, content)
            assert path.read_bytes() == content
            assert files.sha256(path) == hashlib.sha256(content).hexdigest()
        assert names(Path(folder)) == ["a"]


@given(st.text(max_size=200))
def test_text_is_written_as_utf_8_without_translation(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        files.write_text(path, text)
        assert path.read_bytes() == text.encode("utf-8")


def test_the_hash_of_a_file_larger_than_a_buffer(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


KILLED = """
import os, signal, sys
from pathlib import Path
from kdflow.core import files
with files.atomic_write(Path(sys.argv[1])) as beside:
    beside.write_text("half of the ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_write_removes_the_file_of_a_killed_process_and_no_other(tmp_path):
    path, other = tmp_path / "a[1]", tmp_path / "b"
    for file in (path, other):
        subprocess.run([sys.executable, "-c", KILLED, file], check=False)
    unrelated = tmp_path / ".a[1].swp"  # of another program
    unrelated.write_text("unrelated")
    assert len(names(tmp_path)) == 3
    with files.atomic_write(path) as living:
        living.write_text("first")
        files.write_text(path, "second")
        assert path.read_text() == "second"
        (left,) = tmp_path.glob(".b.*")
        assert sorted(tmp_path.iterdir()) == sorted([left, living, unrelated, path])
    assert path.read_text() == "first"
    files.write_text(other, "third")
    assert sorted(tmp_path.iterdir()) == sorted([unrelated, path, other])


FULL_DISK = """
import errno, resource, sys
from pathlib import Path
from kdflow.core import files
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.write_bytes(Path(sys.argv[1]), bytes(5000))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True)
    assert done.stdout == "EFBIG\n", done.stderr
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]
