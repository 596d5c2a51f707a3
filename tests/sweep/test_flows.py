"""The flows, with a real server, worker and deployments: six cells of a paper, variants, the experiment, drift."""

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from browser import BROWSER, browser
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_server import PAPER, TARGETS, running_worker
from project import Project, copy_of

from kdflow.sweep import flows, gpu_slots
from kdflow.sweep.gpu_slots import GpuSlots

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def swept(server, fresh, tmp_path_factory) -> tuple[Project, str]:
    """A project with all six cells, run by `prefect deployment run`, and the flow run."""
    project = copy_of(fresh, tmp_path_factory.mktemp("swept") / "copy")
    with running_worker(server, project):
        output = server.prefect(
            "deployment", "run", "sweep/any", "--param", f"targets={json.dumps(TARGETS)}", "--param", f"paper={PAPER}",
            cwd=project.folder,
        )  # fmt: skip
        run = re.search(r"UUID: (\S+)", output).group(1)
        assert server.final_state(run)["type"] == "COMPLETED", server.log(run)
    return project, run


def test_six_cells_run_two_at_a_time(server, swept):
    project, run = swept
    cells = [task for task in server.tasks(run) if "cell@" in task["name"]]
    assert len(cells) == 6 and {task["state_type"] for task in cells} == {"COMPLETED"}
    moments = sorted([(t["start_time"], 1) for t in cells] + [(t["end_time"], -1) for t in cells])
    running = [sum(step for _, step in moments[: i + 1]) for i in range(len(moments))]
    assert max(running) == 2
    assert "up to date" in project.run("dvc", "--cd", PAPER, "status", "table1", "--with-deps").stdout
    assert project.run("kdflow", "cells", "--paper", PAPER, "--status").stdout.splitlines()[-1] == "6 done"


def test_a_stage_waits_for_the_stages_that_it_needs(server, swept):
    tasks = {task["name"].rpartition(":")[2]: task for task in server.tasks(swept[1])}
    teacher, prepare = tasks["teacher@digits-resnet20"], tasks["prepare@digits"]
    assert prepare["end_time"] <= teacher["start_time"]
    students = [task for name, task in tasks.items() if name.startswith("cell@digits-resnet20")]
    assert len(students) == 5 and all(teacher["end_time"] <= task["start_time"] for task in students)
    assert all(task["end_time"] <= tasks["table1"]["start_time"] for name, task in tasks.items() if "cell@" in name)


def test_tables_progress_and_logs_are_in_prefect(server, swept):
    run = swept[1]
    artifacts = server.artifacts(run)
    assert "KD+CutMix" in artifacts["table1-table"]["data"] and artifacts["progress"]["data"] == 100.0
    assert "kd seed 0" in server.log(run), "the output of a stage"


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")
def test_the_page_of_a_flow_run_shows_the_sweep(server, swept, tmp_path):
    page, wait = f"{server.address}/runs/flow-run/{swept[1]}", "--virtual-time-budget=20000"
    picture = Path(os.environ.get("KDFLOW_SCREENSHOT", tmp_path / "sweep.png"))
    html = browser(tmp_path, wait, "--dump-dom", page)
    assert all(word in html for word in ("Completed", "sweep", "Task Runs", "Artifacts"))
    browser(tmp_path, wait, "--window-size=1400,510", f"--screenshot={picture}", page)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_second_sweep_runs_no_stage(server, swept):
    project, _ = swept
    with running_worker(server, project):
        run = server.run("sweep/any", targets=TARGETS, paper=PAPER)
        assert server.final_state(run)["type"] == "COMPLETED"
    assert [task["name"] for task in server.tasks(run)] == ["end orphans"]


def test_a_machine_takes_results_that_another_has_pushed(server, swept, fresh, tmp_path):
    first, second = (copy_of(project, tmp_path / name) for project, name in ((swept[0], "first"), (fresh, "second")))
    for project in (first, second):
        project.run("dvc", "--cd", PAPER, "remote", "add", "-d", "shared", str(tmp_path / "remote"))
    with running_worker(server, first):
        run = server.run("sweep/any", targets=TARGETS, paper=PAPER, sync_remote=True)
        assert server.final_state(run)["type"] == "COMPLETED", server.log(run)
    second.run("dvc", "--cd", PAPER, "fetch", "--run-cache")
    _, output = second.dvc("--cd", PAPER, "repro", "--pull", "table1")
    assert output.count("is cached - skipping run") == 9, output


def test_ctrl_c_ends_a_sweep_in_a_terminal_and_its_server(fresh, tmp_path):
    project = copy_of(fresh, tmp_path / "copy")
    process = project.start("kdflow", "sweep", *TARGETS, "--paper", PAPER)
    assert any("Running stage" in line for line in iter(process.stdout.readline, ""))
    pids = [pid for pid in psutil.pids() if _works_in(pid, project.folder)]
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in output, output
    assert "interrupted: " in output
    deadline = time.monotonic() + 20
    while alive := [pid for pid in pids if _works_in(pid, project.folder)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)
    assert len(pids) >= 4  # the sweep, its server, DVC, a stage


def _works_in(pid: int, folder: Path) -> bool:
    try:
        process = psutil.Process(pid)
        return Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_each_gpu_runs_one_stage_of_all_flows(server, monkeypatch):
    """The GPUs are numbers only; no stage runs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")  # some GPUs of a machine
    monkeypatch.setattr(gpu_slots, "POLL_SECONDS", 0.1)
    used, counts, all_used = [], [], asyncio.Event()

    async def stage(slots: GpuSlots) -> None:
        async with slots.slot() as environment:
            gpus = environment["CUDA_VISIBLE_DEVICES"].split(",")
            assert not set(gpus) & set(used)
            used.extend(gpus)
            counts.append(len(used))
            if len(used) == 3:
                all_used.set()
            with contextlib.suppress(TimeoutError):  # a busy machine gives out slots slowly
                await asyncio.wait_for(all_used.wait(), 30)
            for gpu in gpus:
                used.remove(gpu)

    async def stages() -> None:
        of_flows = GpuSlots(2, 1), GpuSlots(2, 1), GpuSlots(1, 2)
        assert of_flows[2].groups == [["4", "5"]], "the third is left over"
        for slots in of_flows:
            await slots.create()
        await asyncio.gather(*(stage(slots) for slots in of_flows for _ in range(2)))

    with temporary_settings({PREFECT_API_URL: server.environment["PREFECT_API_URL"]}):
        asyncio.run(stages())
    assert len(counts) == 6 and max(counts) == 3


def test_without_gpus_max_parallel_stages_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    running, most = 0, 0

    async def stage(slots: GpuSlots) -> None:
        nonlocal running, most
        async with slots.slot() as environment:
            assert environment == {}
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1

    async def stages(slots: GpuSlots) -> None:
        await asyncio.gather(*(stage(slots) for _ in range(5)))

    asyncio.run(stages(GpuSlots(2, 4)))
    assert most == 2


@pytest.mark.parametrize(
    "parameters",
    [
        {"targets": []},
        {"targets": ["Table 3"]},
        {"targets": "table1"},
        {"variants": {"epochs": [-1]}},
        {"variants": {"epochs": []}},
        {"variants": {"epoch": [2]}},
        {"targets": ["table1"], "max_parallel": 0},
        {"targets": ["table1"], "deployment": "sweep"},
        {"targets": ["table1"], "timeout_hours": {"cell": -1}},
    ],
)
def test_the_server_refuses_parameters_of_a_wrong_type(server, fresh, parameters):
    deployment = server.post("deployments/filter", deployments={"name": {"any_": ["any"]}}).json()[0]["id"]
    response = server.post(f"deployments/{deployment}/create_flow_run", parameters=parameters)
    assert response.status_code == 409 and "Validation failed" in response.text, response.text


REFUSED = [
    ({"targets": ["table9"]}, "targets: unknown name 'table9'; did you mean 'table1'?"),
    ({"targets": ["cell@*-crd"]}, "targets: cell@*-crd matches none of the 10 targets of paper/six/dvc.yaml"),
    ({"targets": ["table1"], "paper": "paper/gone"}, "paper/gone/tables.yaml: no such file"),
    ({"targets": ["table1"], "deployment": "sweep/any"}, "deployment: DVC has no default remote"),
    ({}, "targets, variants: exactly one of the two is required"),
    ({"variants": {"methods": ["kdd"]}}, "methods: unknown name 'kdd'; did you mean 'kd'?"),
    ({"variants": {}}, "variants: nothing is varied"),
    ({"variants": {"epochs": [1]}, "sync_remote": True}, "sync_remote: variants run on one machine only"),
    ({"targets": ["table1"], "sync_remote": True}, "sync_remote: DVC has no default remote"),
]


@pytest.mark.parametrize(("parameters", "message"), REFUSED)
def test_a_flow_refuses_unknown_names_before_a_stage_runs(server, fresh, monkeypatch, parameters, message):
    """Calls the flow directly, since a worker takes half a minute for these."""
    monkeypatch.chdir(fresh.folder)
    before = server.post("task_runs/count").json()
    with temporary_settings({PREFECT_API_URL: server.environment["PREFECT_API_URL"]}):
        state = asyncio.run(flows.sweep(**({"paper": PAPER} | parameters), return_state=True))
    assert state.is_failed() and message in state.message
    assert server.post("task_runs/count").json() == before


def test_the_state_of_a_refused_flow_run_has_the_reason(server, fresh):
    with running_worker(server, fresh, limit=2):
        bad = {"targets": ["table9"]}, {"targets": ["table1"], "max_paralel": 2}
        unknown, misspelt = [server.run("sweep/any", paper=PAPER, **parameters) for parameters in bad]
        state = server.final_state(unknown)
        assert state["type"] == "FAILED" and "unknown name 'table9'; did you mean 'table1'?" in state["message"]
        state = server.final_state(misspelt)
        assert state["type"] == "CRASHED" and "Process exited with status code: 1" in state["message"]
        assert server.tasks(unknown) == server.tasks(misspelt) == []


@pytest.mark.long
def test_variants_of_the_experiment_are_dvc_experiments(server, chained):
    project, _ = chained
    with running_worker(server, project):
        run = server.run("sweep/any", variants={"epochs": [1, 2], "methods": ["kd"]})
        assert server.final_state(run)["type"] == "COMPLETED", server.log(run)
    table = server.artifacts(run)["variants"]["data"]
    names = ("variant-e1-kd", "variant-e2-kd")
    assert all(f"| {name} | kd |" in table for name in names)
    assert all(name in project.run("dvc", "exp", "list").stdout for name in names)
    assert "epochs: 1" in (project.folder / "params.yaml").read_text(), "the workspace stays as it is"
    assert not list((project.folder / ".kdflow/runs").glob("*")), "checkpoints of finished runs are removed"


@pytest.fixture(scope="module")
def chained(server, fresh, tmp_path_factory) -> tuple[Project, str]:
    """A project after the experiment in params.yaml, and the flow run."""
    project = copy_of(fresh, tmp_path_factory.mktemp("chained") / "copy")
    with running_worker(server, project):
        run = server.run("experiment/default")
        assert server.final_state(run)["type"] == "COMPLETED", server.log(run)
    return project, run


def test_the_stages_of_the_experiment_run_in_order(server, chained):
    _, run = chained
    tasks = sorted(server.tasks(run), key=lambda task: task["start_time"])
    assert [task["name"] for task in tasks] == [
        "end orphans", "prepare", "teacher", "logits", "distill@kd", "evaluate@kd", "report"
    ]  # fmt: skip
    artifacts = server.artifacts(run)
    assert "| kd |" in artifacts["report-table"]["data"]
    assert artifacts["report-accuracy"]["data"].startswith("data:image/png;base64,")


def test_the_nightly_deployment_has_scheduled_runs(server, fresh):
    nightly = server.post("deployments/filter", deployments={"name": {"any_": ["nightly"]}}).json()[0]
    assert [schedule["schedule"]["cron"] for schedule in nightly["schedules"]] == ["0 3 * * *"]
    query = {
        "deployments": {"id": {"any_": [nightly["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if runs := server.post("flow_runs/filter", **query).json():
            assert all("T03:00:00" in run["expected_start_time"] for run in runs)
            return
        time.sleep(1)
    raise AssertionError("no run was scheduled in two minutes")


@pytest.mark.long
def test_a_metric_that_has_drifted_fails_the_flow(server, swept, tmp_path):
    project = copy_of(swept[0], tmp_path / "copy")
    cell = "cell@digits-resnet8-ce"
    project.run("kdflow", "drift", "--update", "--paper", PAPER)
    with running_worker(server, project):
        same = server.run("drift/nightly", paper=PAPER, force=[cell])
        assert server.final_state(same)["type"] == "COMPLETED", server.log(same)
        assert [task["name"].rpartition(":")[2] for task in server.tasks(same) if ":" in task["name"]] == [cell]
        baseline = project.folder / PAPER / "baseline.json"
        content = json.loads(baseline.read_text())
        content["cells"]["digits-resnet20-resnet8-kd"]["metrics"]["top1"]["mean"] += 50
        baseline.write_text(json.dumps(content))
        moved = server.run("drift/nightly", paper=PAPER, force=None)
        state = server.final_state(moved)
    assert state["type"] == "FAILED" and "metrics moved or are missing" in state["message"]
    assert "digits-resnet20-resnet8-kd" in server.artifacts(moved)["drift"]["data"]
