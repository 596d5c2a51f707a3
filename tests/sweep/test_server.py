"""The server of a sweep from a terminal: there as long as who started it, and what is said where it is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from paths import ROOT

START = "from kdflow.sweep import server; server._start(['sleep', '100']); print('started', flush=True); input()"


def sleeping(folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cwd", "cmdline", "status"])
        if process.info["cwd"] == str(folder) and process.info["cmdline"] and "100" in process.info["cmdline"]
    ]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_who_started_it_however_that_comes(tmp_path, how):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ours = subprocess.Popen(
        [sys.executable, "-c", START], cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert ours.stdout.readline() == b"started\n"
    until = time.monotonic() + 20
    while len(sleeping(tmp_path)) < 2:  # it and its keeper
        assert time.monotonic() < until
        time.sleep(0.02)
    ours.send_signal(how)
    ours.wait(20)
    while sleeping(tmp_path):
        assert time.monotonic() < until, "the server is left behind"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["table1"], "error: PREFECT_API_URL: http://127.0.0.1:9/api: no server answers ("),
        (["--epochs", "-1"], "error: kdflow sweep: epochs.0: input should be greater than 0, got -1"),
        (["--method", "kdd"], "error: variants: methods: unknown name 'kdd'; did you mean 'kd'?"),
        ([], "error: kdflow sweep: either targets or variants (--epochs, --method, --student) are needed"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_a_line(options, said):
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", "kdflow.cli", "sweep", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr
