"""The experiment of params.yaml at a small budget: the real DVC in a git repository, and real interruptions."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from experiment import COMPUTE, SMALL, assert_students
from processes import children, descendants
from project import Project, copy_of, project_in

pytestmark = pytest.mark.slow


LONGER = {"epochs": 5, "methods": ["kd_tlcutmix_pick"]}


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory) -> dict[str, dict]:
    """Records of a longer experiment that was not interrupted."""
    project = copy_of(finished, tmp_path_factory.mktemp("undisturbed") / "copy")
    project.settings(**LONGER)
    project.dvc("repro", "evaluate@kd_tlcutmix_pick")
    return project.records("kd_tlcutmix_pick")


def test_the_table_and_the_figure_are_there(finished):
    table = (finished.folder / "data/report/table.md").read_text()
    assert all(f"| {method} |" in table for method in SMALL["methods"])
    assert "Not a full run: teacher with 2 of 40 epochs; demo dataset, 2 of 40 epochs." in table
    assert (finished.folder / "data/report/accuracy.png").read_bytes().startswith(b"\x89PNG")
    shown = finished.run("kdflow", "table").stdout
    assert "kd_tlcutmix_pick" in shown and "data/report/accuracy.svg" in shown


def test_a_second_repro_runs_nothing(finished):
    ran, output = finished.dvc("repro")
    assert ran == [] and "up to date" in output


def test_metrics_are_there_for_dvc(finished):
    files = {f"data/metrics/{method}.json" for method in SMALL["methods"]}
    shown = json.loads(finished.run("dvc", "metrics", "show", "--json").stdout)
    assert set(shown[""]["data"]) == files and all("data" in found for found in shown[""]["data"].values())


def test_a_clone_gets_the_results_without_computing(project, tmp_path):
    project.run("dvc", "remote", "add", "-d", "shared", str(tmp_path / "remote"))
    project.run("dvc", "push")
    project.commit()  # with dvc.lock
    project.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = project_in(tmp_path / "clone")
    for command in (["pull"], ["checkout"]):
        output = clone.run("dvc", *command).stdout
        assert "paper" not in output and len(output.splitlines()) < 30
    assert clone.run("kdflow", "table").stdout == project.run("kdflow", "table").stdout
    assert clone.dvc("repro", "--pull")[0] == [] and clone.status() == set()
    columns = clone.run("dvc", "exp", "show", "--csv").stdout.splitlines()[0].split(",")
    assert len(columns) < 200 and not [column for column in columns if "paper" in column]


def test_disagreement_is_counted_with_the_experiment_s_teacher(finished, tmp_path):
    output = finished.run("kdflow", "disagreement", "--out", str(tmp_path / "out")).stdout
    counted = json.loads((tmp_path / "out/disagreement.json").read_text())
    assert counted["views"] == 300 and 0 < counted["percent"] < 100
    assert f"on {counted['percent']:.1f} % of 300 views" in output
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"disagreement.json", "samples.png", "samples.svg"}


def test_records_have_agreement_and_pick_ratio(finished):
    for record in finished.records("kd_tlcutmix_pick").values():
        assert 0 < record["agreement"] <= 100
        assert all(point["pick_ratio"] > 1 for point in record["curve"])
    assert all(point["pick_ratio"] is None for r in finished.records("kd").values() for point in r["curve"])


@pytest.mark.long
def test_stored_logits_give_the_same_records(project):
    online = project.records("kd_tlcutmix_pick")["seed0.json"]
    project.settings(methods=["kd_tlcutmix_pick"], seeds=[0], teacher_logits="replay-float32")
    counts = []
    for target in ((), ("-f", "-s", "distill@kd_tlcutmix_pick")):  # computed, then read from the cache
        project.dvc("repro", *target)
        project.dvc("repro")
        timing = json.loads((project.folder / "data/records/kd_tlcutmix_pick/seed0.json").read_text())["timing"]
        counts.append((timing["teacher_views_computed"], timing["teacher_views_read"]))
        record = project.records("kd_tlcutmix_pick")["seed0.json"]
        assert record["settings"].pop("teacher_logits") == "replay-float32"
        for key in set(online) - {"settings", "settings_sha256"}:
            assert record[key] == online[key], key
    views = 3 * 300 * 2  # x and two draws, images, epochs
    assert counts == [(views, 0), (0, views)]


@pytest.mark.long
def test_logits_of_all_views_are_computed_ahead(project):
    project.settings(methods=["kd"], seeds=[0], teacher_logits="views")
    ran, output = project.dvc("repro")
    assert ran == ["logits", "distill@kd", "evaluate@kd", "report"]
    assert "data/logits/views.h5: 7,500 views, float16" in output
    assert not list((project.folder / ".kdflow/views").iterdir())
    timing = json.loads((project.folder / "data/records/kd/seed0.json").read_text())["timing"]
    assert (timing["teacher_views_computed"], timing["teacher_views_read"]) == (0, 600)
    store = project.folder / "data/logits/views.h5"
    content = bytearray(store.read_bytes())
    content[-1] ^= 1
    store.unlink()  # DVC may have linked it to its cache
    store.write_bytes(content)
    before = (project.folder / "data/students/kd/seed0.json").read_bytes()
    output = project.run(sys.executable, "-m", "stages.distill", "kd", fails=True).stdout
    assert "error: kd seed 0: data/logits/views.h5: damaged store of logits" in output and "Traceback" not in output
    assert (project.folder / "data/students/kd/seed0.json").read_bytes() == before


@pytest.mark.long
def test_another_number_of_epochs_leaves_data_and_teacher_alone(project):
    before = (project.folder / "params.yaml").read_text()
    ran, _ = project.dvc("exp", "run", "-S", "epochs=3")
    assert_students(ran[:-1])
    assert ran[-1] == "report"
    assert {r["budget"]["epochs"] for r in project.records("kd").values()} == {3}
    after = (project.folder / "params.yaml").read_text()
    assert after == before.replace("\nepochs: 2", "\nepochs: 3")  # comments and all


def test_an_edited_method_is_the_only_one_to_run(project):
    recipes = project.folder / "recipes/methods.yaml"
    text = recipes.read_text()
    recipes.write_text(text.replace("kd: {ce: 0.1, kl: 0.9, tau: 4.0}", "kd: {ce: 0.2, kl: 0.8, tau: 4.0}"))
    assert recipes.read_text() != text
    ran, _ = project.dvc("repro", "distill@kd", "distill@kd_tlcutmix_pick")
    assert ran == ["distill@kd"]


def test_where_it_is_computed_is_no_reason_to_compute_again(project):
    project.settings(compute={**COMPUTE, "threads": 2, "processes_per_run": 2})
    assert project.dvc("repro")[0] == []


@pytest.mark.long
def test_the_same_seed_twice_gives_the_same_record(project):
    before = project.records("kd_tlcutmix_pick")
    ran, _ = project.dvc("repro", "-f", "-s", "distill@kd_tlcutmix_pick", "evaluate@kd_tlcutmix_pick")
    assert ran == ["distill@kd_tlcutmix_pick", "evaluate@kd_tlcutmix_pick"]
    assert project.records("kd_tlcutmix_pick") == before and len(before) == 2


@pytest.mark.long
def test_two_processes_train_as_one_does(project):
    before = project.records("kd_tlcutmix_pick")
    project.settings(seeds=[0], compute={**COMPUTE, "threads": 1, "processes_per_run": 2})
    stages = ("distill@kd_tlcutmix_pick", "evaluate@kd_tlcutmix_pick")
    assert project.dvc("repro", "-f", "-s", *stages)[0] == [*stages]
    after = project.records("kd_tlcutmix_pick")
    for file, record in after.items():
        assert (record["machine"]["processes_per_run"], before[file]["machine"]["processes_per_run"]) == (2, 1)
        # At this learning rate rounding errors grow fast: test_distributed.py compares at a lower one.
        assert record["curve"][0]["loss"] == pytest.approx(before[file]["curve"][0]["loss"], rel=0.02)
        assert record["settings_sha256"] == before[file]["settings_sha256"]
    assert list(after) == ["seed0.json"] and not list(project.folder.glob(".kdflow/runs/*/checkpoint.safetensors"))


def command_of(pid: int) -> str:
    """Return the command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes to kill in Linux's /proc")
@pytest.mark.parametrize(
    "how", ["ctrl-c", *(pytest.param(f"kill {whom}", marks=pytest.mark.long) for whom in ("the stage", "dvc"))]
)
def test_an_interrupted_student_ends_with_the_same_digits(project, undisturbed, how):
    project.settings(**LONGER)
    process = project.start("dvc", "repro", "evaluate@kd_tlcutmix_pick")
    checkpoints = project.folder / ".kdflow/runs"
    deadline = time.monotonic() + 120
    while len(list(checkpoints.glob("*/checkpoint.safetensors"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None, "no checkpoint came"
        time.sleep(0.01)
    everyone = descendants(process.pid)
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        stage = next(pid for pid in everyone if "stages.distill" in command_of(pid))
        runs = [run for server in children(stage) for run in children(server)]
        victim = {"kill the stage": stage, "kill dvc": process.pid}[how]
        if how == "kill dvc":  # the stage looks for it once a second: the runs must not finish before that
            for run in runs:
                os.kill(run, signal.SIGSTOP)
        os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output
    assert "Traceback" not in output
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() and "defunct" not in command_of(pid) for pid in everyone):
        assert time.monotonic() < deadline, "a process is left behind"
        time.sleep(0.1)

    ran, output = project.dvc("repro", "evaluate@kd_tlcutmix_pick")
    assert "distill@kd_tlcutmix_pick" in ran
    assert "resumed after epoch" in output, output
    assert project.records("kd_tlcutmix_pick") == undisturbed and len(undisturbed) == 2
    assert not list(checkpoints.glob("*/checkpoint.safetensors"))  # nothing is kept of finished runs


KILLS = int(os.environ.get("KDFLOW_KILLS", "0"))
VICTIMS = ("everyone", "the runs", "dvc")
KILLED = ("evaluate@kd_tlcutmix_pick", "evaluate@crd_kd")


def killed(project: Project, after: float, victim: str) -> bool:
    """Start `dvc repro` and kill a part of it `after` seconds; return whether it was still running then."""
    process = project.start("dvc", "repro", *KILLED)
    with contextlib.suppress(subprocess.TimeoutExpired):
        output, _ = process.communicate(timeout=after)
        assert process.returncode == 0, output
        return False
    stages = [pid for pid in descendants(process.pid) if "stages." in command_of(pid)]
    runs = [run for stage in stages for server in children(stage) for run in children(server)]
    everyone = [process.pid, *descendants(process.pid)]
    chosen = {"everyone": everyone, "the runs": runs or stages or everyone, "dvc": [process.pid]}[victim]
    for pid in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(60)  # where only dvc is killed, its stages may still be ending when it is started again
    return process.returncode != 0


@pytest.mark.skipif(not KILLS, reason="KDFLOW_KILLS=20 runs it; above, each kind of process is killed once")
def test_a_graph_that_is_killed_at_any_moment_ends_with_the_same_digits(tmp_path):
    methods = ["kd_tlcutmix_pick", "crd_kd"]
    (tmp_path / "bare").mkdir()
    bare = Project(tmp_path / "bare")
    bare.settings(methods=methods, seeds=[0, 1], epochs=8, teacher_epochs=4)
    recipes = bare.folder / "recipes/methods.yaml"
    few = "crd_kd: {ce: 1.0, kl: 1.0, tau: 4.0, loss: {name: crd, weight: 0.8, options: {negatives: 200}}}"
    recipes.write_text(re.sub("^crd_kd: .*$", few, recipes.read_text(), flags=re.MULTILINE))
    bare.run("git", "commit", "-qam", "small")
    bare.dvc("repro", "logits")
    alone = copy_of(bare, tmp_path / "alone")
    began = time.monotonic()
    alone.dvc("repro", *KILLED)
    seconds = time.monotonic() - began
    # At most half of the time: runs are resumed after each kill, so that later kills come late in the run as well.
    moments, kills, lives, resumed = random.Random(0), 0, 0, 0
    while kills < KILLS:
        lives += 1
        project = copy_of(bare, tmp_path / f"life {lives}")
        while kills < KILLS and killed(project, moments.uniform(0, seconds / 2), VICTIMS[kills % len(VICTIMS)]):
            kills += 1
            print(f"life {lives}, kill {kills}", flush=True)
        project.dvc("repro", *KILLED)
        for method in methods:
            assert project.records(method) == alone.records(method) and len(alone.records(method)) == 2
        for file in (project.folder / "data/students").rglob("*.json"):
            resumed += json.loads(file.read_text())["timing"]["resumed"]
        kept, expected = ({f.relative_to(p.folder) for f in p.folder.glob("data/**/*")} for p in (project, alone))
        assert kept == expected
        assert not list(project.folder.glob(".kdflow/runs/*/*"))
    print(f"{kills} kills in {lives} lives, {resumed} times a run was resumed from a checkpoint")
    assert resumed > 0


def test_bad_input_stops_dvc_with_one_line_and_leaves_the_outputs(project):
    def outputs():
        return {file: file.read_bytes() for file in (project.folder / "data").rglob("*") if file.is_file()}

    before = outputs()
    project.settings(methods=["kd", "kd_tlcutmix_pik"])
    _, output = project.dvc("repro", "report", fails=True)
    assert "Traceback" not in output
    project.settings(methods=SMALL["methods"], lr=-1.0)
    _, output = project.dvc("repro", fails=True)
    assert "error: params.yaml: lr: input should be greater than 0, got -1.0" in output.splitlines()
    assert "Traceback" not in output
    project.settings(lr=None)
    assert project.dvc("repro")[0] == [] and outputs() == before
