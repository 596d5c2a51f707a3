"""Sweeps on several workers, and sweeps after processes were killed: no process is left and no result differs."""

import contextlib
import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from prefect_server import PAPER, Server, Worker, proxy_that_loses_a_response, running_worker
from processes import children
from project import Project, copy_of

from kdflow.sweep import processes

pytestmark = pytest.mark.slow

# By default one test with all faults, one after the other. KDFLOW_FAULTS=12: twelve tests with one fault each, in turn.
FAULTS = ("dvc", "training", "worker", "cancel", "server")
COUNT = int(os.environ.get("KDFLOW_FAULTS", "0"))

NAMES = ("resnet8-ce", "resnet20-resnet8-kd", "resnet20-resnet8-kd_tlcutmix_pick")
THREE = ["cell@digits-resnet8-ce", "cell@*-kd", "cell@*-kd_tlcutmix_pick"]  # the targets of NAMES


def records(project: Project) -> dict[str, dict]:
    """Return the records of the cells by name, without `timing`, which differs between runs."""
    contents = {}
    for file in sorted((project.folder / f"{PAPER}/data/cells").glob("*/seed0.json")):
        contents[file.parent.name] = json.loads(file.read_text())
        del contents[file.parent.name]["timing"], contents[file.parent.name]["content_sha256"]
    return contents


def left_behind(project: Project) -> list[str]:
    """Return the commands of all processes that run in a project's folder, except workers."""
    commands = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if (
                Path(process.cwd()).is_relative_to(project.folder)
                and process.status() != "zombie"
                and "worker start" not in command
            ):
                commands.append(command)
    return commands


def computed(*logs: str) -> Counter[str]:
    """Count how often DVC has run each teacher and cell, according to its output."""
    return Counter(re.findall(r"Running stage '((?:teacher|cell)@\S+)'", "\n".join(logs)))


def wait_for(condition: Callable[[], object], seconds: float = 120) -> object:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if value := condition():
                return value
        time.sleep(0.1)
    raise AssertionError(f"not true within {seconds} s")


def test_two_machines_exchange_results_through_a_remote(server, fresh, tmp_path):
    """Each is a clone with a worker; DVC's remote is a folder. The coordinator computes nothing.

    No stage is computed twice, even if the response to the creation of a flow run is lost.
    """
    clones = [copy_of(fresh, tmp_path / name) for name in ("coordinator", "one", "two")]
    for clone in clones:
        clone.run("dvc", "--cd", PAPER, "remote", "add", "-d", "shared", str(tmp_path / "remote"))
    with contextlib.ExitStack() as stack:
        address, lost = stack.enter_context(proxy_that_loses_a_response(server, b"/create_flow_run HTTP"))
        workers = [stack.enter_context(running_worker(server, clones[0], "coordinator", address))]
        run = server.run("sweep/any", targets=THREE, paper=PAPER, deployment="sweep/any")
        wait_for(lambda: server.state(run)["type"] == "RUNNING")  # a worker runs one flow run at a time
        workers += [stack.enter_context(running_worker(server, clone, clone.folder.name)) for clone in clones[1:]]
        assert server.final_state(run)["type"] == "COMPLETED", server.log(run)
    logs = [worker.log.read_text() for worker in workers]
    runs = server.children(run)
    assert lost and len(runs) == 4, [child["parameters"]["targets"] for child in runs]
    assert set(computed(*logs).values()) == {1} and len(computed(*logs)) == 4, computed(*logs)
    assert not computed(logs[0]) and all(computed(log) for log in logs[1:])
    ran, output = clones[0].dvc("--cd", PAPER, "repro", *(f"cell@digits-{name}" for name in NAMES))
    assert ran == [] and "up to date" in output
    assert "3 done" in clones[0].run("kdflow", "cells", "--paper", PAPER, "--status").stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def with_teacher(fresh, tmp_path_factory) -> Project:
    """A project with dataset and teacher, whose students train for some seconds."""
    project = copy_of(fresh, tmp_path_factory.mktemp("with_teacher") / "copy")
    file = project.folder / PAPER / "params.yaml"
    file.write_text(file.read_text().replace("epoch_scale: 0.05", "epoch_scale: 0.3", 1))
    project.dvc("--cd", PAPER, "repro", "teacher@digits-resnet20")
    return project


@pytest.fixture(scope="module")
def undisturbed(with_teacher, tmp_path_factory) -> dict[str, dict]:
    """The records of three cells that DVC has run without Prefect."""
    project = copy_of(with_teacher, tmp_path_factory.mktemp("undisturbed") / "copy")
    project.dvc("--cd", PAPER, "repro", *(f"cell@digits-{name}" for name in NAMES))
    return records(project)


def training(project: Project, run: str) -> list[int]:
    """Return the process groups of a flow run in which a cell runs."""
    groups = processes.read_pid_files(project.folder / processes.PID_DIR, processes.Group).values()
    return [
        group.leader.pid
        for group in groups
        if group.flow_run == run and "cell@" in group.description and children(group.leader.pid)
    ]


def cause(fault: str, server: Server, worker: Worker, run: str) -> None:
    """Kill or cancel something while a flow run trains a cell."""
    leaders = wait_for(lambda: training(worker.project, run))
    match fault:
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
            server.post(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})


@pytest.mark.parametrize("faults", [(FAULTS[i % len(FAULTS)],) for i in range(COUNT)] or [FAULTS])
def test_after_faults_no_process_is_left_and_the_next_sweep_finishes(
    server, with_teacher, undisturbed, tmp_path, faults
):
    project, workers, runs = copy_of(with_teacher, tmp_path / "copy"), list[Worker](), list[tuple[str, set[str]]]()
    checkpoints, seen = project.folder / ".kdflow/runs", set[float]()

    def new_checkpoint() -> bool:
        new = {file.stat().st_mtime for file in checkpoints.glob("*/checkpoint.safetensors")} - seen
        seen.update(new)
        return bool(new)

    with contextlib.ExitStack() as stack:
        for fault in faults:
            if not workers or workers[-1].process.poll() is not None:
                workers.append(stack.enter_context(running_worker(server, project, f"worker{len(workers)}")))
            if not runs or fault in ("cancel", "server"):
                runs.append((server.run("sweep/any", targets=THREE, paper=PAPER), set()))
            wait_for(lambda: training(project, runs[-1][0]) and new_checkpoint())
            time.sleep(random.uniform(0, 3) if COUNT else 0)
            cause(fault, server, workers[-1], runs[-1][0])
            runs[-1][1].add(fault)
            if fault in ("cancel", "server"):
                server.final_state(runs[-1][0])
        if workers[-1].process.poll() is not None:
            workers.append(stack.enter_context(running_worker(server, project, f"worker{len(workers)}")))
        last = server.run("sweep/any", targets=THREE, paper=PAPER)
        assert server.final_state(last)["type"] == "COMPLETED", server.log(last)
    for run, caused in runs:
        state = server.final_state(run, 0.1)["type"]
        expected = {"worker": {"CRASHED"}, "cancel": {"CANCELLED"}, "server": {"CRASHED", "COMPLETED", "FAILED"}}
        for fault in caused & expected.keys():
            assert state in expected[fault], (caused, state)
        assert caused & expected.keys() or state == "COMPLETED", (caused, state)
        assert all(task["state_type"] not in ("RUNNING", "PENDING") for task in server.tasks(run))
    times = computed(*(worker.log.read_text() for worker in workers))
    assert len(times) == 3 and max(times.values()) <= 1 + len(faults), times
    assert records(project) == undisturbed
    assert wait_for(lambda: not left_behind(project), 20), left_behind(project)


@pytest.fixture
def with_remote(with_teacher, tmp_path) -> Project:
    project = copy_of(with_teacher, tmp_path / "copy")
    project.run("dvc", "--cd", PAPER, "remote", "add", "-d", "shared", str(tmp_path / "remote"))
    return project


def run_with_waiting_child(server: Server) -> tuple[str, dict]:
    """Start a coordinator; return its id and the flow run that it has created.

    No worker begins the latter, as the only worker has one flow run at a time.
    """
    run = server.run("sweep/any", targets=["cell@digits-resnet8-ce"], paper=PAPER, deployment="sweep/any")
    return run, wait_for(lambda: server.children(run))[0]


@pytest.mark.long
def test_the_flow_runs_of_a_killed_coordinator_are_cancelled(server, with_remote):
    with running_worker(server, with_remote) as worker:
        run, child = run_with_waiting_child(server)
        worker.stop(signal.SIGKILL)
    environment = {"PREFECT_API_URL": server.environment["PREFECT_API_URL"], "PREFECT_HOME": str(server.home)}
    command = ("kdflow", "sweep", "cell@digits-resnet8-ce", "--paper", PAPER)
    with_remote.run("env", *(f"{key}={value}" for key, value in environment.items()), *command)
    assert (server.state(run)["type"], server.state(child["id"])["type"]) == ("CRASHED", "CANCELLED")
    assert wait_for(lambda: not left_behind(with_remote), 20), left_behind(with_remote)


@pytest.mark.long
def test_a_coordinator_fails_when_the_flow_run_that_it_waits_for_is_deleted(server, with_remote):
    with running_worker(server, with_remote):
        run, child = run_with_waiting_child(server)
        server.prefect("flow-run", "delete", child["id"], cwd=with_remote.folder)
        state = server.final_state(run)
    assert state["type"] == "FAILED" and "cell@digits-resnet8-ce: its run was deleted" in state["message"], state
