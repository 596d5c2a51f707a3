"""Sweeps by real workers in several clones, and after whatever can be killed was: nothing is left, nothing differs."""

import contextlib
import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable

import httpx
import psutil
import pytest
from prefect_server import PAPER, Server, Worker, losing_an_answer, working
from processes import children
from project import Project, copy_of

from kdflow.sweep import processes

pytestmark = pytest.mark.slow

# By default all of them, one after the other in one sweep; KDFLOW_FAULTS=12: so many sweeps with one each, in turn.
FAULTS = ("dvc", "training", "worker", "cancel", "server")
ASKED = int(os.environ.get("KDFLOW_FAULTS", "0"))


NAMES = ("resnet8-ce", "resnet20-resnet8-kd", "resnet20-resnet8-kd_tlcutmix_pick")
THREE = ["cell@digits-resnet8-ce", "cell@*-kd", "cell@*-kd_tlcutmix_pick"]  # the same


def records(project: Project) -> dict[str, dict]:
    """Every record of the six cells, without what may differ between two runs."""
    found = {}
    for file in sorted((project.folder / "data/six/cells").glob("*/seed0.json")):
        found[file.parent.name] = json.loads(file.read_text())
        found[file.parent.name].pop("timing")
    return found


def left_behind(project: Project) -> list[str]:
    """Commands of living processes that work in this project, workers apart."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if process.cwd() == str(project.folder) and process.status() != "zombie" and "worker start" not in command:
                found.append(command)
    return found


def computed(*logs: str) -> Counter[str]:
    """How often each teacher and cell was computed, from what DVC says."""
    return Counter(re.findall(r"Running stage '\S+:((?:teacher|cell)@\S+)'", "\n".join(logs)))


def test_two_machines_share_what_they_compute(server, fresh, tmp_path):
    """Each a clone with a worker of its own; DVC's remote is a folder. The coordinator computes nothing.

    Nor is anything computed twice where the coordinator does not hear that what it asked for was begun.
    """
    clones = [copy_of(fresh, tmp_path / name) for name in ("coordinator", "one", "two")]
    for clone in clones:
        clone.run("dvc", "remote", "add", "-d", "shared", str(tmp_path / "remote"))
    with contextlib.ExitStack() as stack:
        address, lost = stack.enter_context(losing_an_answer(server, b"/create_flow_run HTTP"))
        workers = [stack.enter_context(working(server, clones[0], "coordinator", address))]
        run = server.run("sweep/any", targets=THREE, paper=PAPER, spread="sweep/any")
        wait_for(lambda: server.state(run)["type"] == "RUNNING")  # a worker has one run at a time
        workers += [stack.enter_context(working(server, clone, clone.folder.name)) for clone in clones[1:]]
        assert server.ended(run)["type"] == "COMPLETED", server.log(run)
    logs = [worker.log.read_text() for worker in workers]
    asked = server.ask("flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [run]}}).json()
    assert lost and len(asked) == 4, [one["parameters"]["targets"] for one in asked]
    assert set(computed(*logs).values()) == {1} and len(computed(*logs)) == 4, computed(*logs)
    assert not computed(logs[0]) and all(computed(log) for log in logs[1:])
    ran, output = clones[0].dvc("repro", *(f"{PAPER}/dvc.yaml:cell@digits-{name}" for name in NAMES))
    assert ran == [] and "up to date" in output
    assert "3 done" in clones[0].run("kdflow", "cells", "--paper", PAPER, "--status").stdout.splitlines()[-1]


def wait_for(look: Callable[[], object], seconds: float = 120) -> object:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if found := look():
                return found
        time.sleep(0.1)
    raise AssertionError("waited in vain")


@pytest.fixture(scope="module")
def taught(fresh, tmp_path_factory) -> Project:
    """With dataset and teacher; students take some seconds now."""
    project = copy_of(fresh, tmp_path_factory.mktemp("taught") / "copy")
    file = project.folder / PAPER / "params.yaml"
    file.write_text(file.read_text().replace("epoch_scale: 0.05", "epoch_scale: 0.3", 1))
    project.dvc("repro", f"{PAPER}/dvc.yaml:teacher@digits-resnet20")
    return project


@pytest.fixture(scope="module")
def undisturbed(taught, tmp_path_factory) -> dict[str, dict]:
    """The records of three cells by DVC alone."""
    project = copy_of(taught, tmp_path_factory.mktemp("undisturbed") / "copy")
    project.dvc("repro", *(f"{PAPER}/dvc.yaml:cell@digits-{name}" for name in NAMES))
    return records(project)


def training(project: Project, run: str) -> list[int]:
    """Process groups of a flow run, in which a cell is under way."""
    groups = processes.read_pid_files(project.folder / processes.PID_DIR, processes.Group).values()
    return [g.leader.pid for g in groups if g.run == run and "cell@" in g.what and children(g.leader.pid)]


def strike(kind: str, server: Server, worker: Worker, run: str) -> None:
    """Kill something in the middle of a run that is training a cell."""
    leaders = wait_for(lambda: training(worker.project, run))
    match kind:
        case "worker":
            worker.stop(signal.SIGKILL)
        case "dvc":
            os.kill(leaders[0], signal.SIGKILL)
        case "training":
            os.kill(children(leaders[0])[0], signal.SIGKILL)
        case "server":
            server.stop(signal.SIGKILL)
            time.sleep(random.uniform(0, 5))
            server.start()
        case "cancel":
            server.ask(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})


@pytest.mark.parametrize("kinds", [(FAULTS[i % len(FAULTS)],) for i in range(ASKED)] or [FAULTS])
def test_after_faults_nothing_is_left_and_the_next_sweep_finishes(server, taught, undisturbed, tmp_path, kinds):
    project, workers, runs = copy_of(taught, tmp_path / "copy"), list[Worker](), list[tuple[str, set[str]]]()
    checkpoints, seen = project.folder / ".kdflow/runs", set[float]()

    def fresh_checkpoint() -> bool:
        new = {file.stat().st_mtime for file in checkpoints.glob("*/checkpoint.safetensors")} - seen
        seen.update(new)
        return bool(new)

    with contextlib.ExitStack() as stack:
        for kind in kinds:
            if not workers or workers[-1].process.poll() is not None:
                workers.append(stack.enter_context(working(server, project, f"worker{len(workers)}")))
            if not runs or kind in ("cancel", "server"):
                runs.append((server.run("sweep/any", targets=THREE, paper=PAPER), set()))
            wait_for(lambda: training(project, runs[-1][0]) and fresh_checkpoint())
            time.sleep(random.uniform(0, 3) if ASKED else 0)
            strike(kind, server, workers[-1], runs[-1][0])
            runs[-1][1].add(kind)
            if kind in ("cancel", "server"):
                server.ended(runs[-1][0])
        if workers[-1].process.poll() is not None:
            workers.append(stack.enter_context(working(server, project, f"worker{len(workers)}")))
        again = server.run("sweep/any", targets=THREE, paper=PAPER)
        assert server.ended(again)["type"] == "COMPLETED", server.log(again)
    for run, struck in runs:
        state = server.ended(run, 0.1)["type"]
        wanted = {"worker": {"CRASHED"}, "cancel": {"CANCELLED"}, "server": {"CRASHED", "COMPLETED", "FAILED"}}
        for kind in struck & wanted.keys():
            assert state in wanted[kind], (struck, state)
        assert struck & wanted.keys() or state == "COMPLETED", (struck, state)
        assert all(task["state_type"] not in ("RUNNING", "PENDING") for task in server.tasks(run))
    times = computed(*(worker.log.read_text() for worker in workers))
    assert len(times) == 3 and max(times.values()) <= 1 + len(kinds), times
    assert records(project) == undisturbed
    assert wait_for(lambda: not left_behind(project), 20), left_behind(project)


@pytest.fixture
def shared(taught, tmp_path) -> Project:
    project = copy_of(taught, tmp_path / "copy")
    project.run("dvc", "remote", "add", "-d", "shared", str(tmp_path / "remote"))
    return project


def asked_elsewhere(server: Server) -> tuple[str, list[dict]]:
    """A run that spreads a cell, and what it has asked for, which nobody does: its worker has one run at a time."""
    run = server.run("sweep/any", targets=["cell@digits-resnet8-ce"], paper=PAPER, spread="sweep/any")
    parent = {"parent_flow_run_id": {"any_": [run]}}
    return run, wait_for(lambda: server.ask("flow_runs/filter", flow_runs=parent).json())


@pytest.mark.long
def test_a_coordinator_that_is_killed_leaves_nothing_asked_elsewhere(server, shared):
    with working(server, shared) as worker:
        run, waiting = asked_elsewhere(server)
        worker.stop(signal.SIGKILL)
    told = {"PREFECT_API_URL": server.environment["PREFECT_API_URL"], "PREFECT_HOME": str(server.home)}
    command = ("kdflow", "sweep", "cell@digits-resnet8-ce", "--paper", PAPER)
    shared.run("env", *(f"{key}={value}" for key, value in told.items()), *command)
    assert (server.state(run)["type"], server.state(waiting[0]["id"])["type"]) == ("CRASHED", "CANCELLED")
    assert wait_for(lambda: not left_behind(shared), 20), left_behind(shared)


@pytest.mark.long
def test_a_run_elsewhere_that_is_lost_can_be_deleted(server, shared):
    project = shared
    with working(server, project):
        run, waiting = asked_elsewhere(server)
        server.prefect("flow-run", "delete", waiting[0]["id"], cwd=project.folder)
        state = server.ended(run)
    assert state["type"] == "FAILED" and "cell@digits-resnet8-ce: its run was deleted" in state["message"], state
