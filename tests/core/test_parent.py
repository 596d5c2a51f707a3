"""Processes whose parent is killed: stages, stages that ignore SIGTERM, and programs under `kdflow.core.parent`."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from paths import ROOT

STAGE = """
import signal, time
from kdflow.core import parent
from kdflow.core.script import run_script

parent.POLL_SECONDS, parent.KILL_GRACE = 0.1, 0.5

def main():
    signal.signal(signal.SIGTERM, {handler})
    print("started", flush=True)
    while True:
        time.sleep(1)

run_script(main)
"""
UNDER_PARENT = "import os, sys; from kdflow.core import parent; parent.POLL_SECONDS, parent.KILL_GRACE = 0.1, 0.5; "
UNDER_PARENT += "sys.exit(parent.run_until_parent_ends({parent}, sys.argv[1:]))"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('started', flush=True); "
STUBBORN += "time.sleep(100)"


def start_under_a_parent(command: list[str]) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """Start a process that starts `command`; returns it, and its descendants once `command` has printed a line."""
    script = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", script, *command], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout.readline() == b"started\n"
    return parent, psutil.Process(parent.pid).children(recursive=True)


def all_end(found: list[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(found, timeout=seconds)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return alive == []


@pytest.mark.parametrize("handler", ["signal.SIG_DFL", "signal.SIG_IGN", "signal.default_int_handler"])
def test_a_stage_ends_with_the_process_that_started_it(tmp_path, handler):
    (tmp_path / "stage.py").write_text(STAGE.format(handler=handler))
    parent, (stage,) = start_under_a_parent([sys.executable, str(tmp_path / "stage.py")])
    time.sleep(0.3)
    assert stage.is_running()
    parent.kill()
    parent.wait()
    assert all_end([stage], 20)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("script", ["print('started', flush=True); import time; time.sleep(100)", STUBBORN])
def test_a_program_ends_with_the_parent_of_the_process_that_runs_it(script, how):
    code = UNDER_PARENT.format(parent="os.getppid()")
    parent, found = start_under_a_parent([sys.executable, "-c", code, sys.executable, "-c", script])
    assert len(found) == 2
    assert len({os.getsid(process.pid) for process in found} - {os.getsid(0)}) == 1, "Ctrl-C does not reach them"
    parent.send_signal(how)
    parent.wait()
    assert all_end(found, 20)


def test_a_program_that_ends_gives_its_exit_code():
    command = [
        sys.executable,
        "-m",
        "kdflow.core.parent",
        str(os.getpid()),
        sys.executable,
        "-c",
        "raise SystemExit(7)",
    ]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 7


def test_a_parent_that_has_ended_before_is_noticed():
    ended = subprocess.Popen(["true"])
    ended.wait()
    command = [sys.executable, "-m", "kdflow.core.parent", str(ended.pid), "sleep", "100"]
    assert subprocess.run(command, cwd=ROOT, check=False, timeout=20).returncode == -signal.SIGTERM % 256
