"""A paper's stages run by the real DVC: what makes them stale, and how drift reports changed numbers."""

import json
import re

import pytest
from project import Project, copy_of, project_in

pytestmark = pytest.mark.slow

TABLES = """
table1:
  kind: accuracy_table
  caption: Some methods
  dataset: digits
  pairs: [resnet20_to_resnet8]
  rows:
  - {label: Teacher}
  - {label: Student, method: ce}
  - {label: KD, method: kd}
  - {label: CutMix, method: kd_tlcutmix}
"""
BUDGET = {"epoch_scale": 0.05, "teacher_epoch_scale": 0.05}
CE, KD, CUTMIX = "digits-resnet8-ce", "digits-resnet20-resnet8-kd", "digits-resnet20-resnet8-kd_tlcutmix"
FOLDER = "paper/miniature"
DVC, PAPER = ("--cd", FOLDER), ("--paper", FOLDER)


def change(project, file, old, new):
    text = (project.folder / file).read_text()
    assert old in text, (file, old)
    (project.folder / file).write_text(text.replace(old, new, 1))


def stale(project):
    """Return the cells and teachers that are stale, or whose inputs are."""
    output = project.run("dvc", *DVC, "status", "cell", "teacher").stdout
    return set(re.findall(r"^(\S+):$", output, re.MULTILINE))


def drift(project, fails=False):
    """Return (cell, field) of all findings that are not ok."""
    output = project.run("kdflow", "drift", "--json", *PAPER, fails=fails).stdout
    return {(f["cell"], f["field"]) for f in json.loads(output)["findings"] if f["status"] != "ok"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Make one table of a paper; a fixture restores changed files by git after each test."""
    project = Project(tmp_path_factory.mktemp("paper"))
    (project.folder / "paper/miniature/tables.yaml").write_text(TABLES)
    for key, value in BUDGET.items():
        text = (project.folder / "paper/miniature/params.yaml").read_text()
        (project.folder / "paper/miniature/params.yaml").write_text(re.sub(f"(?m)^{key}: .*", f"{key}: {value}", text))
    project.run("kdflow", "plan", *PAPER)
    ran, output = project.dvc(*DVC, "repro", f"cell@{KD}")
    assert ran == ["prepare@digits", "teacher@digits-resnet20", f"cell@{KD}"], output
    table = project.run("kdflow", "table", "table1", *PAPER).stdout
    assert "missing" in table and re.search(r"KD\s+│\s+\d+\.\d\d \(", table), (
        "one cell has a value, the others are missing"
    )
    ran, output = project.dvc(*DVC, "repro", "report")
    assert set(ran) == {f"cell@{CE}", f"cell@{CUTMIX}", "table1", "report"}
    project.run("kdflow", "drift", "--update", *PAPER)
    project.run("git", "add", "-A", ":!*dvc.lock")  # its content describes data/, which git does not restore
    project.run("git", "commit", "-qm", "made")
    return project


@pytest.fixture(autouse=True)
def restored(project):
    yield
    project.run("git", "checkout", "-q", ".")


def test_everything_exists_and_is_up_to_date(project):
    assert stale(project) == set() and drift(project) == set()
    (project.folder / "kdflow/report/__pycache__").mkdir(exist_ok=True)
    (project.folder / "kdflow/report/__pycache__/any.pyc").write_text("of another Python")
    assert project.dvc(*DVC, "repro", "report")[0] == []
    done = project.run("kdflow", "cells", "--status", *PAPER).stdout
    assert done.splitlines()[-1] == "3 done"
    data = project.folder / FOLDER / "data"
    files = {file.name for file in (data / "table1").iterdir()}
    assert files == {f"table.{suffix}" for suffix in ("md", "tex", "csv", "json")}
    note = "Not a full run: teacher with 2 of 40 epochs; demo dataset, 2 of 40 epochs."
    assert note in (data / "table1/table.md").read_text()
    metrics = json.loads(project.run("dvc", *DVC, "metrics", "show", "--json", "data/metrics/table1.json").stdout)
    assert set(metrics[""]["data"]["data/metrics/table1.json"]["data"]) == {"digits-resnet20", CE, KD, CUTMIX}


def test_a_changed_recipe_makes_its_cells_stale_and_a_changed_comment_none(project):
    for file in ("training/loop.py", "training/step.py", "methods/losses/__init__.py"):
        with (project.folder / "kdflow" / file).open("a") as source:
            source.write("\n# a comment\n")
    assert stale(project) == set()
    change(project, "recipes/methods.yaml", "kd: {ce: 0.1, kl: 0.9", "kd: {ce: 0.1, kl: 0.8")
    assert stale(project) == {f"cell@{KD}"}
    assert "settings changed" in project.run("kdflow", "cells", "--status", *PAPER).stdout
    assert (KD, "status") in drift(project, fails=True)


def test_changed_golden_numbers_make_their_method_s_cells_stale(project):
    change(project, "tests/golden/kd_tlcutmix.json", "15.9", "16.9")
    assert stale(project) == {f"cell@{CUTMIX}"}


def test_a_new_row_adds_its_cell_and_makes_no_other_stale(project):
    with (project.folder / "paper/miniature/tables.yaml").open("a") as tables:
        tables.write("  - {label: KD twice as long, method: kd, epochs: 80}\n")
    project.run("kdflow", "plan", *PAPER)
    assert stale(project) == {f"cell@{KD}-e80"}


def test_a_variant_runs_in_a_copy_and_keeps_unfinished_work_in_the_root(project):
    ran, _ = project.dvc(*DVC, "exp", "run", "--temp", "-n", "short", "-S", "epoch_scale=0.02", f"cell@{CE}")
    assert ran == [f"cell@{CE}"]
    assert "short" in project.run("dvc", *DVC, "exp", "show", "--csv").stdout
    assert stale(project) == set(), "the workspace stays as it is"
    assert (project.folder / ".kdflow/runs").is_dir() and not list(project.folder.glob("paper/**/.kdflow"))


def test_another_clone_gets_what_exists_without_computing(project, tmp_path):
    first = copy_of(project, tmp_path / "first")
    with (first.folder / FOLDER / "tables.yaml").open("a") as tables:
        tables.write("  - {label: KD twice as long, method: kd, epochs: 80}\n")
    first.run("kdflow", "plan", *PAPER)
    first.run("dvc", *DVC, "remote", "add", "-d", "shared", str(tmp_path / "remote"))
    first.commit()
    first.run("dvc", *DVC, "push")
    first.run("git", "clone", "-q", ".", str(tmp_path / "second"))
    second = project_in(tmp_path / "second")
    second.run("dvc", *DVC, "pull", "--allow-missing")
    tables = [clone.run("kdflow", "table", "table1", *PAPER).stdout for clone in (first, second)]
    assert tables[0] == tables[1] and "missing" in tables[1]
    assert second.dvc(*DVC, "repro", "--pull", f"cell@{KD}", f"cell@{CUTMIX}")[0] == []


@pytest.mark.long
def test_drift_finds_changed_arithmetic(project):
    for file, old, new in (
        ("kdflow/methods/losses/__init__.py", "tau**2", "1.01 * tau**2"),
        ("kdflow/methods/views/__init__.py", "255 - mean) / std\n", "255 - mean) / (1.02 * std)\n"),
    ):
        change(project, file, old, new)
        assert stale(project) == set(), "DVC depends on the golden files, which a change of arithmetic must change"
        project.dvc(*DVC, "repro", "-f", "-s", f"cell@{KD}")
        assert (KD, "first_step_loss") in drift(project, fails=True)
        project.run("git", "checkout", "-q", ".")
