"""A small demo under the limits of containers and clusters: the same weights, or one line that states the problem."""

import os
import subprocess
import sys

import pytest
from commands import small_shm
from paths import ROOT
from stage_project import small_project

pytestmark = pytest.mark.slow

# All stages in one process, which imports torch once.
STAGES = f"""
import runpy, sys
for stage in (["prepare"], ["teacher"], ["distill", "kd"]):
    sys.argv = [f"{ROOT}/stages/{{stage[0]}}.py", *stage[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
WEIGHTS = ("teacher/model.safetensors", "students/kd/seed0.safetensors")


def command(limit="true"):
    """Return the command that runs the demo after `limit`, a command of the shell."""
    return ["sh", "-c", f'{limit} && exec "$@"', "sh", sys.executable, "-c", STAGES]


def options(folder, **env):
    folder.mkdir(exist_ok=True)
    small_project(folder, teacher_epochs=2)
    return {"cwd": folder, "env": {**os.environ, "PYTHONPATH": str(ROOT), **env}}


def run(arguments, **rest):
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300, **rest)


def weights(folder, done):
    assert done.returncode == 0, done.stderr
    return [(folder / "data" / name).read_bytes() for name in WEIGHTS]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The weights of a run without limits."""
    folder = tmp_path_factory.mktemp("plain")
    return weights(folder, run(command(), **options(folder)))


def test_4_mb_of_shared_memory(tmp_path, plain):
    assert weights(tmp_path, small_shm("4m", *command(), **options(tmp_path))) == plain


def test_limited_address_space(tmp_path, plain):
    assert weights(tmp_path, run(command("ulimit -v 8000000"), **options(tmp_path))) == plain


@pytest.mark.parametrize("kilobytes", [1_000_000, 3_000_000])
def test_too_little_address_space_ends_in_one_line(tmp_path, kilobytes):
    done = run(command(f"ulimit -v {kilobytes}"), **options(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: not enough memory"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_one_cpu_a_long_temporary_folder_and_files_that_only_their_owner_may_read(tmp_path, plain):
    """All three are tried in one run: none of them may change the weights."""

    def limit():
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    folder = str(tmp_path / "t").ljust(150, "x")
    os.mkdir(folder)  # noqa: PTH102
    done = run(command("umask 077"), preexec_fn=limit, **options(tmp_path, TMPDIR=folder))
    assert weights(tmp_path, done) == plain
    assert not [file for file in (tmp_path / "data").rglob("*") if file.stat().st_mode & 0o077]
