"""A TMPDIR with a long path, or one that cannot be used."""

import os
import subprocess
import tempfile
from multiprocessing import connection, process, util
from pathlib import Path

import pytest
from commands import KDFLOW, SMALL_PAIR
from paths import ROOT
from tree import make_tree

from kdflow.core import machine
from kdflow.core.errors import user_message


@pytest.fixture
def short_folder():
    """A temporary folder whose path is shorter than pytest's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def fresh_process(monkeypatch, short_folder):
    """Forget the folder that multiprocessing has chosen in this process."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    config = dict(process.current_process()._config)
    config.pop("tempdir", None)
    monkeypatch.setattr(process.current_process(), "_config", config)
    monkeypatch.setattr(util, "_finalizer_registry", {})
    yield
    util._run_finalizers()  # removes the folder before `short_folder` is removed


@pytest.mark.parametrize("length", [70, 71, 100, 150])
def test_sockets_work_with_a_long_path(fresh_process, short_folder, monkeypatch, length):
    folder = str(short_folder / "t").ljust(length, "x")
    os.mkdir(folder)  # noqa: PTH102
    monkeypatch.setenv("TMPDIR", folder)
    machine.use_short_socket_folder()
    with connection.Listener(family="AF_UNIX") as listener:
        assert listener.address.startswith(folder) == (length <= 70)
    assert os.stat(util.get_temp_dir()).st_mode & 0o077 == 0  # noqa: PTH116
    assert tempfile.gettempdir() == folder, "other temporary files stay there"


def test_no_usable_folder_is_explained_in_one_line(fresh_process, monkeypatch):
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    with pytest.raises(FileNotFoundError) as caught:
        tempfile.gettempdir()
    assert user_message(caught.value) == "TMPDIR: No usable temporary directory found in ['/nowhere']"


@pytest.mark.slow
def test_distill_works_with_a_missing_folder(tmp_path):
    """test_container.py tries a path of 150 characters."""
    make_tree(tmp_path / "images")
    options = [*SMALL_PAIR, "--image-size", "32", "--workers", "1"]
    done = subprocess.run(
        [*KDFLOW, "distill", "--data", tmp_path / "images", *options, "--out", tmp_path / "out", "--root", ROOT],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "missing")},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/summary.json").exists()
