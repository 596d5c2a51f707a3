"""The commands for a paper, run as processes, with records that no training made."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from commands import fails_in_one_line, run
from papers import CE, KD, PICK, edit, make_paper, write_cell, write_paper, write_teacher
from paths import ROOT

from kdflow.paper import cells
from kdflow.sweep.processes import PID_DIR, FlowRunProcess, Group, Process, find_process
from kdflow.training import record


@pytest.fixture
def root(tmp_path):
    paper = make_paper(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_teacher(paper)
    for name, top1 in ((CE, [80.0, 81.0, 82.0]), (KD, [90.0, 90.1, 90.2])):
        write_cell(paper, name, top1)
    return tmp_path


def test_plan_writes_and_checks(root):
    fails = run("plan", "--check", "--paper", "papers", cwd=root).stderr
    assert fails == "error: papers/tables.yaml: no such file\nerror: papers/params.yaml: no such file\n"
    done = run("plan", cwd=root)
    assert done.returncode == 0 and done.stdout.startswith("paper: 4 tables and figures, 16 cells, 1 teachers")
    assert run("plan", "--check", cwd=root).returncode == 0
    with (root / "paper/cells.json").open("a") as file:
        file.write("\n")
    fails_in_one_line(run("plan", "--check", cwd=root), "paper/cells.json: out of date with paper/tables.yaml")


def test_cells_and_their_statuses(root):
    assert {CE, "digits-resnet20"} <= set(run("cells", cwd=root).stdout.splitlines())
    lines = run("cells", "--table", "1", "--status", cwd=root).stdout.splitlines()
    assert f"done     3/3  90.10 (0.10)  {KD}" in lines
    assert sorted(lines[-1].split(", ")) == ["2 done", "6 missing"]
    assert lines[-2] == "Not a full run: demo dataset."
    assert run("cells", "--figure", "4", cwd=root).stdout.splitlines() == ["digits-resnet20", PICK]
    assert lines[0].split() == ["done", "teacher", "95.50", "digits-resnet20"]
    fails_in_one_line(run("cells", "--table", "7", cwd=root), "unknown name 'table7'")


def test_show(root):
    assert "status    done, 3 of 3 seeds" in run("show", KD, cwd=root).stdout
    output = run("show", "digits-resnet20", cwd=root).stdout
    assert "status    done, top1 95.50" in output and "teacher@digits-resnet20" in output
    fails_in_one_line(run("show", KD[:-1], cwd=root), "cell: unknown name", f"did you mean '{KD}'?")


def test_edited_means_and_records_are_refused(root):
    file = root / "paper/data/cells" / KD / "cell.json"
    before = file.read_text()
    edit(file, top1={"mean": 99.0, "std": 0.1, "n": 3})
    for command in (("cells", "--status"), ("show", KD)):
        fails_in_one_line(run(*command, cwd=root), f"{KD}/cell.json: changed after it was written; `dvc checkout`")
    file.write_text(before)
    record_file = file.with_name("seed1.json")
    edit(record_file, final=json.loads(record_file.read_text())["final"] | {"top1": 99.0})
    fails_in_one_line(run("cells", "--status", cwd=root), f"{KD}/seed1.json: changed after it was written")


@pytest.mark.slow
def test_a_table_in_all_formats(root):
    output = run("table", "table1", cwd=root).stdout
    assert "90.10 (0.10)" in output and "paper 90.00 (0.50), +0.10" in output and "missing" in output
    assert run("table", "table1", "--format", "csv", cwd=root).stdout.startswith("row,pair,metric,status,mean")
    assert "by the paper's count" in run("table", "table6", cwd=root).stdout.lower()
    fails_in_one_line(run("table", "figure1", cwd=root), "figure1: a figure", "dvc --cd paper repro figure1")
    fails_in_one_line(run("table", "tabel1", cwd=root), "did you mean 'table1'?")


def test_report(root):
    done = run("report", cwd=root)
    assert done.stdout == "paper/data/report.html\n" and "90.10 (0.10)" in (root / "paper/data/report.html").read_text()


@pytest.mark.slow
def test_exit_codes_of_drift(root):
    fails_in_one_line(run("drift", cwd=root), "paper/baseline.json: no such baseline")
    assert run("drift", "--update", cwd=root).stdout == "paper/baseline.json: 2 cells\n"
    fails_in_one_line(
        run("drift", "--update", PICK, cwd=root), f"{PICK}: missing; only cells that are done can be a baseline"
    )
    done = run("drift", cwd=root)
    assert done.returncode == 0 and done.stdout.endswith("0 of 11 values have drifted or are missing\n")
    (cells.cell_folder(make_paper(root), KD) / cells.CELL_RECORD).unlink()
    done = run("drift", cwd=root)
    assert (done.returncode, done.stderr) == (2, "") and f"missing {KD}: record: present -> none" in done.stdout
    assert json.loads(run("drift", "--json", cwd=root).stdout)["drift"] is True
    assert f"| {KD} | record | present | none |" in run("drift", "--md", cwd=root).stdout
    assert run("drift", CE, cwd=root).returncode == 0
    fails_in_one_line(run("drift", "nothing", cwd=root), "cell: unknown name 'nothing'")


@pytest.mark.parametrize(
    ("stage", "name", "message"),
    [
        (
            "cell",
            "digits-resnet20-resnet8-kdd",
            "paper: cell: unknown name 'digits-resnet20-resnet8-kdd'; did you mean",
        ),
        (
            "teacher",
            "digits-resnet56",
            "paper: teacher: unknown name 'digits-resnet56'; did you mean 'digits-resnet20'?",
        ),
        ("prepare", "digit", "paper: dataset: unknown name 'digit'; did you mean 'digits'?"),
        ("item", "table2", "paper: table or figure: unknown name 'table2'; did you mean"),
        ("item", "", "usage: python -m stages.paper_item FOLDER NAME"),
        ("cell", CE, "paper/data/digits.h5: no such file; `dvc repro prepare` makes it"),
    ],
)
def test_a_stage_refuses_bad_input_in_one_line(root, stage, name, message):
    before = {file: file.read_bytes() for file in (root / "paper/data").rglob("*") if file.is_file()}
    arguments = ["paper", name] if name else ["paper"]
    fails_in_one_line(
        run(*arguments, cwd=root, command=[sys.executable, str(ROOT / f"stages/paper_{stage}.py")]), message
    )
    assert {file: file.read_bytes() for file in (root / "paper/data").rglob("*") if file.is_file()} == before


def test_a_dataset_without_a_reader_is_refused(tmp_path):
    write_paper(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    recipes = tmp_path / "recipes/datasets.yaml"
    recipes.write_text(recipes.read_text().replace("    reader: digits\n", ""))
    fails_in_one_line(run("check", cwd=tmp_path), "params.yaml: dataset: digits cannot be prepared yet", "data.reader")
    stage = [sys.executable, str(ROOT / "stages/paper_prepare.py")]
    done = run("paper", "digits", cwd=tmp_path, command=stage)
    fails_in_one_line(done, "paper/tables.yaml: dataset: digits cannot be prepared yet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either targets or variants (--epochs, --method, --student) are required"),
        (("table1", "--epochs", "40"), "either targets or variants"),
        (("tabel1",), "targets: unknown name 'tabel1'; did you mean 'table1'?"),
        (("table1", "cell@*-crd"), "targets: cell@*-crd matches none of the"),
        (("table1", "--max-parallel", "0"), "kdflow sweep: Invalid value for '--max-parallel'"),
        (("table1", "--paper", "gone"), "gone/tables.yaml: no such file"),
    ],
)
def test_a_sweep_refuses_bad_arguments_before_it_starts_a_server(root, arguments, message):
    done = run("sweep", *arguments, cwd=root)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_the_status_of_a_sweep_shows_flow_runs_orphans_and_cells(root):
    lines = run("sweep", "--status", cwd=root).stdout.splitlines()
    assert lines == ["no flow runs in this folder", "paper: 16 cells: 2 done, 14 missing"]
    this, dead = find_process(os.getpid()), Process(pid=os.getpid(), start_time=1.0)
    folder = root / PID_DIR
    for name, worker in (("alive", None), ("lost", dead)):
        record.write_record(
            folder / FlowRunProcess.FOLDER / f"{name}.json",
            FlowRunProcess(flow_run=name, flow="sweep", process=this, worker=worker),
        )
    stage = subprocess.Popen(["sleep", "100"], start_new_session=True)
    groups = (("a", "alive", find_process(stage.pid)), ("b", "gone", find_process(stage.pid)), ("c", "gone", dead))
    for name, flow_run, leader in groups:
        group = Group(leader=leader, description=f"stage {name}", flow_run=flow_run)
        record.write_record(folder / Group.FOLDER / f"{name}.json", group)
    *lines, last = run("sweep", "--status", "table1", cwd=root).stdout.splitlines()
    stage.kill()
    stage.wait()
    alive, lost, a, b = lines
    assert "run alive" in alive and "orphaned" not in alive and "orphaned: the next flow marks it" in lost
    assert "stage a" in a and "orphaned" not in a and "stage b" in b and "orphaned: the next flow ends it" in b
    assert last == "paper: 8 cells: 2 done, 6 missing"
