"""Prefect for real: a server, a worker, deployments, six cells of a small paper, variants, the chain, the drift."""

import asyncio
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
from prefect_server import PAPER, TARGETS, working
from project import Project, copy_of

from kdflow.sweep import flows, tasks
from kdflow.sweep.tasks import GpuSlots

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def swept(server, fresh, tmp_path_factory) -> tuple[Project, str]:
    """All six cells, by `prefect deployment run`; and the flow run."""
    project = copy_of(fresh, tmp_path_factory.mktemp("swept") / "copy")
    with working(server, project):
        said = server.prefect(
            "deployment", "run", "sweep/any", "--param", f"targets={json.dumps(TARGETS)}", "--param", f"paper={PAPER}",
            cwd=project.folder,
        )  # fmt: skip
        run = re.search(r"UUID: (\S+)", said).group(1)
        assert server.ended(run)["type"] == "COMPLETED", server.log(run)
    return project, run


def test_six_cells_are_made_two_at_a_time(server, swept):
    project, run = swept
    cells = [task for task in server.tasks(run) if "cell@" in task["name"]]
    assert len(cells) == 6 and {task["state_type"] for task in cells} == {"COMPLETED"}
    moments = sorted([(t["start_time"], 1) for t in cells] + [(t["end_time"], -1) for t in cells])
    together = [sum(step for _, step in moments[: i + 1]) for i in range(len(moments))]
    assert max(together) == 2
    assert "up to date" in project.run("dvc", "status", f"{PAPER}/dvc.yaml:table1", "--with-deps").stdout
    assert project.run("kdflow", "cells", "--paper", PAPER, "--status").stdout.splitlines()[-1] == "6 done"


def test_a_stage_waits_for_what_it_needs(server, swept):
    tasks = {task["name"].rpartition(":")[2]: task for task in server.tasks(swept[1])}
    teacher, prepare = tasks["teacher@digits-resnet20"], tasks["prepare@digits"]
    assert prepare["end_time"] <= teacher["start_time"]
    taught = [task for name, task in tasks.items() if name.startswith("cell@digits-resnet20")]
    assert len(taught) == 5 and all(teacher["end_time"] <= task["start_time"] for task in taught)
    assert all(task["end_time"] <= tasks["table1"]["start_time"] for name, task in tasks.items() if "cell@" in name)


def test_tables_progress_and_output_are_there_to_be_seen(server, swept):
    run = swept[1]
    shown = server.artifacts(run)
    assert "KD+CutMix" in shown["table1-table"]["data"] and shown["progress"]["data"] == 100.0
    assert "kd seed 0" in server.log(run), "what the stages print"


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome here")
def test_prefects_page_shows_the_sweep(server, swept, tmp_path):
    page, wait = f"{server.address}/runs/flow-run/{swept[1]}", "--virtual-time-budget=20000"
    picture = Path(os.environ.get("KDFLOW_SCREENSHOT", tmp_path / "sweep.png"))
    seen = browser(tmp_path, wait, "--dump-dom", page)
    assert all(word in seen for word in ("Completed", "sweep", "Task Runs", "Artifacts"))
    browser(tmp_path, wait, "--window-size=1400,510", f"--screenshot={picture}", page)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_sweep_again_runs_nothing(server, swept):
    project, _ = swept
    with working(server, project):
        run = server.run("sweep/any", targets=TARGETS, paper=PAPER)
        assert server.ended(run)["type"] == "COMPLETED"
    assert [task["name"] for task in server.tasks(run)] == ["reap"]


def test_what_is_shared_is_enough_for_another_machine(server, swept, fresh, tmp_path):
    ours, other = (copy_of(project, tmp_path / name) for project, name in ((swept[0], "ours"), (fresh, "other")))
    for project in (ours, other):
        project.run("dvc", "remote", "add", "-d", "shared", str(tmp_path / "remote"))
    with working(server, ours):
        run = server.run("sweep/any", targets=TARGETS, paper=PAPER, share=True)
        assert server.ended(run)["type"] == "COMPLETED", server.log(run)
    other.run("dvc", "fetch", "--run-cache")
    _, output = other.dvc("repro", "--pull", f"{PAPER}/dvc.yaml:table1")
    assert output.count("is cached - skipping run") == 9, output


def test_ctrl_c_ends_a_sweep_from_a_terminal_and_its_server(fresh, tmp_path):
    project = copy_of(fresh, tmp_path / "copy")
    process = project.start("kdflow", "sweep", *TARGETS, "--paper", PAPER)
    said = iter(process.stdout.readline, "")
    assert any("Running stage" in line for line in said)
    everyone = [pid for pid in psutil.pids() if _works_in(pid, project.folder)]
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in output, output
    assert "interrupted: what was trained so far is kept" in output
    until = time.monotonic() + 20
    while living := [pid for pid in everyone if _works_in(pid, project.folder)]:
        assert time.monotonic() < until, living
        time.sleep(0.1)
    assert len(everyone) >= 4  # the sweep, its server, DVC, a stage


def _works_in(pid: int, folder: Path) -> bool:
    try:
        process = psutil.Process(pid)
        return process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_each_card_is_taken_by_one_stage_of_all_flows(server, monkeypatch):
    """Cards by their numbers: what would run on them does not."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")  # of a machine with more
    monkeypatch.setattr(tasks, "POLL_SECONDS", 0.1)
    taken, most = [], []

    async def stage(slots: GpuSlots) -> None:
        async with slots.slot() as environment:
            cards = environment["CUDA_VISIBLE_DEVICES"].split(",")
            assert not set(cards) & set(taken)
            taken.extend(cards)
            most.append(len(taken))
            await asyncio.sleep(1)
            for card in cards:
                taken.remove(card)

    async def stages() -> None:
        ours, other, both = GpuSlots(2, 1), GpuSlots(2, 1), GpuSlots(1, 2)
        assert both.groups == [["4", "5"]], "the third is left over"
        for slots in (ours, other, both):
            await slots.create()
        await asyncio.gather(*(stage(slots) for slots in (ours, other, both) for _ in range(2)))

    with temporary_settings({PREFECT_API_URL: server.environment["PREFECT_API_URL"]}):
        asyncio.run(stages())
    assert len(most) == 6 and max(most) == 3


def test_without_cards_so_many_stages_run_at_once(monkeypatch):
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
        {"targets": ["table1"], "at_once": 0},
        {"targets": ["table1"], "spread": "sweep"},
        {"targets": ["table1"], "hours": {"cell": -1}},
    ],
)
def test_the_server_refuses_parameters_that_mean_nothing(server, fresh, parameters):
    found = server.ask("deployments/filter", deployments={"name": {"any_": ["any"]}}).json()[0]["id"]
    answer = server.ask(f"deployments/{found}/create_flow_run", parameters=parameters)
    assert answer.status_code == 409 and "Validation failed" in answer.text, answer.text


NONSENSE = [
    ({"targets": ["table9"]}, "targets: unknown name 'table9'; did you mean 'table1'?"),
    ({"targets": ["cell@*-crd"]}, "targets: cell@*-crd matches none of the 10 targets of paper/six/dvc.yaml"),
    ({"targets": ["table1"], "paper": "paper/gone"}, "paper/gone/tables.yaml: no such file"),
    ({"targets": ["table1"], "spread": "sweep/any"}, "spread: DVC has no default remote"),
    ({}, "targets, variants: one of the two is needed"),
    ({"variants": {"methods": ["kdd"]}}, "methods: unknown name 'kdd'; did you mean 'kd'?"),
    ({"variants": {}}, "variants: nothing is varied"),
    ({"variants": {"epochs": [1]}, "share": True}, "share: variants are run here"),
    ({"targets": ["table1"], "share": True}, "share: DVC has no default remote"),
]


@pytest.mark.parametrize(("parameters", "says"), NONSENSE)
def test_a_flow_refuses_what_is_not_there_before_anything_runs(server, fresh, monkeypatch, parameters, says):
    """As a worker calls it, without a worker: that takes half a minute for these."""
    monkeypatch.chdir(fresh.folder)
    before = server.ask("task_runs/count").json()
    with temporary_settings({PREFECT_API_URL: server.environment["PREFECT_API_URL"]}):
        state = asyncio.run(flows.sweep(**({"paper": PAPER} | parameters), return_state=True))
    assert state.is_failed() and says in state.message
    assert server.ask("task_runs/count").json() == before


def test_a_worker_says_what_a_flow_refuses(server, fresh):
    with working(server, fresh, limit=2):
        asked = {"targets": ["table9"]}, {"targets": ["table1"], "at_one": 2}
        unknown, misspelt = [server.run("sweep/any", paper=PAPER, **parameters) for parameters in asked]
        state = server.ended(unknown)
        assert state["type"] == "FAILED" and "unknown name 'table9'; did you mean 'table1'?" in state["message"]
        state = server.ended(misspelt)
        assert state["type"] == "CRASHED" and "Process exited with status code: 1" in state["message"], (
            "as Prefect says"
        )
        assert server.tasks(unknown) == server.tasks(misspelt) == []


@pytest.mark.long
def test_variants_of_the_experiment_are_experiments_of_dvc(server, chained):
    project, _ = chained
    with working(server, project):
        run = server.run("sweep/any", variants={"epochs": [1, 2], "methods": ["kd"]})
        assert server.ended(run)["type"] == "COMPLETED", server.log(run)
    shown = server.artifacts(run)["variants"]["data"]
    made = ("variant-e1-kd", "variant-e2-kd")
    assert all(f"| {name} | kd |" in shown for name in made)
    assert all(name in project.run("dvc", "exp", "list").stdout for name in made)
    assert "epochs: 1" in (project.folder / "params.yaml").read_text(), "the workspace stays as it is"
    assert not list((project.folder / ".kdflow/runs").glob("*")), "checkpoints were kept here, and are done with"


@pytest.fixture(scope="module")
def chained(server, fresh, tmp_path_factory) -> tuple[Project, str]:
    """The experiment in params.yaml, made; and the flow run."""
    project = copy_of(fresh, tmp_path_factory.mktemp("chained") / "copy")
    with working(server, project):
        run = server.run("experiment/default")
        assert server.ended(run)["type"] == "COMPLETED", server.log(run)
    return project, run


def test_the_experiment_is_a_chain(server, chained):
    _, run = chained
    tasks = sorted(server.tasks(run), key=lambda task: task["start_time"])
    assert [task["name"] for task in tasks] == [
        "reap", "prepare", "teacher", "logits", "distill@kd", "evaluate@kd", "report"
    ]  # fmt: skip
    shown = server.artifacts(run)
    assert "| kd |" in shown["report-table"]["data"]
    assert shown["report-accuracy"]["data"].startswith("data:image/png;base64,")


def test_a_cron_has_runs_scheduled(server, fresh):
    nightly = server.ask("deployments/filter", deployments={"name": {"any_": ["nightly"]}}).json()[0]
    assert [schedule["schedule"]["cron"] for schedule in nightly["schedules"]] == ["0 3 * * *"]
    until = time.monotonic() + 120
    while time.monotonic() < until:
        waiting = {"state": {"type": {"any_": ["SCHEDULED"]}}}
        found = server.ask("flow_runs/filter", deployments={"id": {"any_": [nightly["id"]]}}, flow_runs=waiting).json()
        if found:
            assert all("T03:00:00" in run["expected_start_time"] for run in found)
            return
        time.sleep(1)
    raise AssertionError("nothing was scheduled in two minutes")


@pytest.mark.long
def test_what_drifts_fails(server, swept, tmp_path):
    project = copy_of(swept[0], tmp_path / "copy")
    cell = "cell@digits-resnet8-ce"
    project.run("kdflow", "drift", "--update", "--paper", PAPER)
    with working(server, project):
        same = server.run("drift/nightly", paper=PAPER, remake=[cell])
        assert server.ended(same)["type"] == "COMPLETED", server.log(same)
        assert [task["name"].rpartition(":")[2] for task in server.tasks(same) if ":" in task["name"]] == [cell]
        baseline = project.folder / PAPER / "baseline.json"
        content = json.loads(baseline.read_text())
        content["cells"]["digits-resnet20-resnet8-kd"]["figures"]["top1"]["mean"] += 50
        baseline.write_text(json.dumps(content))
        moved = server.run("drift/nightly", paper=PAPER, remake=None)
        state = server.ended(moved)
    assert state["type"] == "FAILED" and "figures moved or are missing" in state["message"]
    assert "digits-resnet20-resnet8-kd" in server.artifacts(moved)["drift"]["data"]
