"""A stage that a sweep needs is already under way in another process of the same folder: the sweep waits for it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_server import PAPER, running_worker
from project import copy_of
from ruamel.yaml import YAML

from kdflow.sweep import dvc_graph
from kdflow.sweep.dvc_graph import Stage
from kdflow.sweep.flows import repro
from kdflow.sweep.processes import NO_TELEMETRY
from kdflow.sweep.tasks import StageTimeouts, run_local

pytestmark = pytest.mark.slow

PROJECT, CELL = Path(), "cell@digits-resnet8-ce"
DVC = (sys.executable, "-m", "dvc")
# Each stage writes its name to a log; the first one ends when there is a file "go".
STAGES = {
    "one": {"cmd": "echo one >> log; until test -e go; do sleep 0.05; done; echo > one.out", "outs": ["one.out"]},
    "two": {"cmd": "echo two >> log; cp one.out two.out", "deps": ["one.out"], "outs": ["two.out"]},
    "three": {"cmd": "echo three >> log; echo > three.out", "outs": ["three.out"]},
}


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def under_way(tmp_path, monkeypatch):
    """A DVC project as the current folder, and a process of DVC that runs its stage "one" until a file "go" exists."""
    monkeypatch.chdir(tmp_path)
    YAML().dump({"stages": STAGES}, Path("dvc.yaml"))
    environment = {**os.environ, **NO_TELEMETRY}
    subprocess.run([*DVC, "init", "-q", "--no-scm"], env=environment, check=True)
    process = subprocess.Popen([*DVC, "repro", "one"], env=environment)
    wait_for(Path("log").exists)
    yield process
    Path("go").touch()
    process.wait(60)


def test_a_stage_under_way_counts_as_stale_and_its_files_as_busy(under_way):
    assert dvc_graph.stale(PROJECT, ["two"]) == [Stage("one", ()), Stage("two", ("one",))]
    assert [dvc_graph.is_busy(PROJECT, [name]) for name in STAGES] == [True, True, False]
    assert not dvc_graph.is_busy(PROJECT, ["removed from dvc.yaml"]), "DVC refuses it when it is run"
    Path("go").touch()
    assert under_way.wait(60) == 0
    assert not dvc_graph.is_busy(PROJECT, list(STAGES))
    assert dvc_graph.stale(PROJECT, ["two"]) == [Stage("two", ())]


def test_a_flow_waits_for_the_stage_and_runs_the_others_meanwhile(server, under_way, monkeypatch):
    is_busy = dvc_graph.is_busy

    def end_it_when_only_it_is_left(project, names):
        busy = is_busy(project, names)
        if busy and Path("three.out").exists():
            Path("go").touch()
        return busy

    @flow
    async def sweep() -> None:
        await run_local(dvc_graph.stale(PROJECT), repro(PROJECT), 1, StageTimeouts(), project=PROJECT)

    monkeypatch.setattr(dvc_graph, "is_busy", end_it_when_only_it_is_left)
    with temporary_settings({PREFECT_API_URL: server.environment["PREFECT_API_URL"]}):
        asyncio.run(sweep())
    assert under_way.wait(60) == 0
    assert Path("log").read_text().split() == ["one", "three", "two"]


@pytest.mark.long
def test_sweeps_from_the_terminal_and_the_server_and_the_nightly_run_wait(server, fresh, tmp_path):
    project = copy_of(fresh, tmp_path / "copy")
    project.dvc("--cd", PAPER, "repro", CELL)
    project.run("kdflow", "drift", "--update", "--paper", PAPER)
    by_hand = project.start("dvc", "--cd", PAPER, "repro", "-f", "-s", CELL)
    assert any("Running stage" in line for line in iter(by_hand.stdout.readline, ""))
    os.killpg(by_hand.pid, signal.SIGSTOP)
    terminal = project.start("kdflow", "sweep", CELL, "--paper", PAPER)
    with running_worker(server, project, limit=2):
        sweep = server.run("sweep/any", targets=[CELL], paper=PAPER)
        nightly = server.run("drift/nightly", paper=PAPER, force=[CELL])
        assert any("waits for another process" in line for line in iter(terminal.stdout.readline, ""))
        wait_for(lambda: all("waits for another process" in server.log(run) for run in (sweep, nightly)))
        os.killpg(by_hand.pid, signal.SIGCONT)
        by_hand.communicate(timeout=60)
        output, _ = terminal.communicate(timeout=60)
        states = {run: server.final_state(run)["type"] for run in (sweep, nightly)}
    assert by_hand.returncode == terminal.returncode == 0, output
    assert states == {sweep: "COMPLETED", nightly: "COMPLETED"}, server.log(nightly)
    assert "Running stage" not in output + server.log(sweep) and "Running stage" in server.log(nightly)


@pytest.mark.parametrize("content", ["", '{"write": 1}'])
def test_a_file_of_running_stages_that_a_kill_left_broken_is_removed(under_way, content):
    """DVC writes the file in place: killed in between, it leaves an empty file and then refuses every command."""
    file = Path(".dvc/tmp/rwlock")
    file.write_text(content)
    broken = subprocess.run([*DVC, "status"], env={**os.environ, **NO_TELEMETRY}, capture_output=True, check=False)
    assert broken.returncode != 0 and b"RWLock-file" in broken.stderr
    assert [dvc_graph.is_busy(PROJECT, ["three"]) for _ in range(2)] == [True, False]
    file.write_text(content)
    assert Stage("three", ()) in dvc_graph.stale(PROJECT)
