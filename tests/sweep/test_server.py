"""The server of a sweep in a terminal ends with the sweep; arguments that are refused before a server starts."""

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


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_the_process_that_started_it(tmp_path, signal_number):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", START], cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout.readline() == b"started\n"
    deadline = time.monotonic() + 20
    while len(sleeping(tmp_path)) < 2:  # the server, and the process that watches the parent
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.send_signal(signal_number)
    parent.wait(20)
    while sleeping(tmp_path):
        assert time.monotonic() < deadline, "the server is left behind"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["table1"], "error: PREFECT_API_URL: http://127.0.0.1:9/api: no server answers ("),
        (["--epochs", "-1"], "error: kdflow sweep: epochs.0: input should be greater than 0, got -1"),
        (["--method", "kdd"], "error: variants: methods: unknown name 'kdd'; did you mean 'kd'?"),
        ([], "error: kdflow sweep: either targets or variants (--epochs, --method, --student) are required"),
    ],
)
def test_a_sweep_with_bad_arguments_is_refused_in_one_line(options, message):
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", "kdflow.cli", "sweep", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1, done.stderr
