"""The kdflow command, run as a user runs it."""

import os
import shutil
import subprocess
import sys

import pytest

KDFLOW = [sys.executable, "-m", "kdflow.cli"]
# Options of `kdflow distill` for the smallest distillation.
SMALL_PAIR = ["--teacher", "resnet14", "--student", "resnet8", "--method", "kd", "--epochs", "1"]


def run(*arguments, cwd=None, command=KDFLOW):
    env = {**os.environ, "COLUMNS": "100"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd=cwd, env=env)


def fails_in_one_line(done, *words):
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert all(word in done.stderr for word in words)


def small_shm(size, *command, **options):
    """Run a command with a /dev/shm of `size`, or skip the test where this machine does not allow it."""
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("this machine does not allow `unshare -m`")
    command = ["unshare", "-m", "sh", "-c", script, "sh", *map(str, command)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)
