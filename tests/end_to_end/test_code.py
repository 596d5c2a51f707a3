"""Dependencies: the stages that an edit of code or settings makes stale, and the copy of the code that runs."""

import json
import sys
import time

import pytest
from experiment import COMPUTE, SMALL
from project import Project, project_in

from kdflow.training.record import code_sha256

pytestmark = pytest.mark.slow

PRECISION = {"fold_teacher": False, "teacher": "float32", "student": "float32", "tf32": False, "compile": "none"}
PRECISION |= {"teacher_runtime": "torch", "step": "eager"}
STUDENTS = {f"distill@{method}" for method in SMALL["methods"]}
EVALUATIONS = {f"evaluate@{method}" for method in SMALL["methods"]}
STALE = {  # an edited file, and the stages that are stale; stages that depend on these follow when they have run
    "kdflow/data/readers/cifar100.py": {"prepare"},
    "kdflow/data/user_folder.py": {"prepare"},
    "kdflow/data/image_files.py": {"prepare", "teacher", "logits", *STUDENTS, *EVALUATIONS},
    "kdflow/models/families/vgg.py": {"teacher", "logits", *STUDENTS, *EVALUATIONS},
    "kdflow/training/schedule.py": {"teacher", *STUDENTS},
    "kdflow/training/evaluate.py": {"teacher", *STUDENTS, *EVALUATIONS},
    "kdflow/training/teacher_logits/all_views.py": {"teacher", "logits", *STUDENTS},
    "kdflow/methods/losses/at.py": STUDENTS,
    "kdflow/methods/views/mixup.py": STUDENTS,
    "kdflow/methods/picks/kl.py": STUDENTS,
    "kdflow/methods/labels/mixed.py": STUDENTS,
    "kdflow/config/experiment.py": {"teacher", "logits", *STUDENTS},
    "kdflow/pipeline/evaluate.py": EVALUATIONS,
    "kdflow/report/experiment_table.py": {"report"},
    "stages/teacher.py": {"teacher"},
    "recipes/user_folder.yaml": {"prepare"},
    "kdflow/config/load.py": set(),
    "kdflow/core/progress.py": set(),
    "kdflow/launch/parallel_runs.py": set(),
    "kdflow/export/export.py": set(),
    "kdflow/report/paper_page.py": set(),
}


@pytest.mark.parametrize("file", STALE)
def test_an_edited_file_makes_the_stages_stale_that_use_it(finished, file):
    source = finished.folder / file
    before = source.read_bytes()
    source.write_bytes(before + b"# edited\n")
    try:
        assert finished.status() == STALE[file]
    finally:
        source.write_bytes(before)


def test_nothing_is_stale_without_an_edit(finished):
    assert finished.status() == set()


STALE_BY_SETTING = [  # changed settings, and the stages that are stale
    ({"lr": 0.1}, STUDENTS),
    ({"epochs": 3}, STUDENTS),
    ({"teacher_epochs": 3}, {"teacher"}),
    ({"base_view": "none"}, {"logits", *STUDENTS}),
    ({"teacher_logits": "replay"}, {"logits"}),
    ({"train_images": 200}, {"prepare", "teacher", "logits", *STUDENTS}),
    ({"seeds": [0]}, {*STUDENTS, *EVALUATIONS, "report"}),
    ({"precision": {**PRECISION, "student": "bfloat16"}}, {"teacher", *STUDENTS}),
    ({"precision": {**PRECISION, "teacher": "bfloat16"}}, {"logits", *STUDENTS}),
    ({"precision": {**PRECISION, "teacher_runtime": "onnxruntime"}}, {"logits", *STUDENTS}),
    ({"precision": {**PRECISION, "step": "compile"}}, {"teacher", *STUDENTS}),
    ({"precision": {**PRECISION, "tf32": True}}, {"teacher", "logits", *STUDENTS}),
    ({"compute": COMPUTE}, set()),
]


@pytest.mark.parametrize(("changes", "stale"), STALE_BY_SETTING, ids=[str(changes) for changes, _ in STALE_BY_SETTING])
def test_a_changed_setting_makes_the_stages_stale_that_use_it(finished, changes, stale):
    file = finished.folder / "params.yaml"
    before = file.read_bytes()
    finished.settings(**changes)
    try:
        assert finished.status() == stale
    finally:
        file.write_bytes(before)


def test_another_name_of_the_dataset_makes_students_stale(project):
    """Their records have the name, and the report refuses records of other settings."""
    file = project.folder / "data/dataset.json"
    content = file.read_text().replace('"name": "digits"', '"name": "numbers"')
    file.unlink()  # it may be a link to DVC's cache
    file.write_text(content)
    assert project.status() == {"prepare", *STUDENTS}


# --- which code runs -----------------------------------------------------------------------------------------


def shas(project: Project, method: str) -> set[str]:
    return {record["code"]["sha256"] for record in project.records(method).values()}


def test_stages_run_the_code_of_their_folder(finished):
    assert shas(finished, "kd") == {finished.code_sha256()} != {code_sha256()}
    output = finished.run(sys.executable, "stages/distill.py", "kd", fails=True).stdout
    assert "stages/distill.py: kdflow is imported from another folder" in output


def test_a_queued_experiment_runs_the_code_that_was_queued(project):
    """DVC runs it in a copy of the project, which has the code of the time when it was queued."""
    project.commit()  # with dvc.lock, so that finished stages do not run again
    queued = project.edit_code()
    project.dvc("exp", "run", "--queue", "--name", "queued", "-S", "seeds=[5]", "-S", "methods=[kd]")
    edited = project.edit_code()
    project.dvc("queue", "start")
    deadline = time.monotonic() + 240
    while "Success" not in (status := project.run("dvc", "queue", "status").stdout):
        assert "Failed" not in status, project.run("dvc", "queue", "logs", "queued").stdout
        assert time.monotonic() < deadline, status
        time.sleep(1)
    assert project.code_sha256() == edited, "the workspace is as it was"
    project.run("git", "checkout", "-q", ".")
    project.dvc("exp", "apply", "queued")
    assert list(project.records("kd")) == ["seed5.json"]
    assert shas(project, "kd") == {queued} and queued not in (edited, code_sha256())
    assert not list(project.folder.glob(".kdflow/runs/*/checkpoint.safetensors")), "checkpoints are in the project"


def test_a_git_worktree_runs_its_code(project, tmp_path):
    project.commit()
    project.run("git", "worktree", "add", "-q", str(tmp_path / "worktree"))
    worktree = project_in(tmp_path / "worktree")
    sha256 = worktree.edit_code()
    worktree.settings(methods=["kd"], seeds=[0], epochs=1, teacher_epochs=1)
    worktree.dvc("repro", "evaluate@kd")
    assert shas(worktree, "kd") == {sha256} and sha256 not in (project.code_sha256(), code_sha256())


def test_torchrun_by_hand_runs_the_code_of_its_folder(project):
    project.settings(seeds=[0], epochs=1)
    sha256 = project.edit_code()
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "stages.distill", "kd"]
    project.run(*command)
    log = json.loads((project.folder / "data/students/kd/seed0.json").read_text())
    assert (log["code"]["sha256"], log["machine"]["processes_per_run"]) == (sha256, 2)
    output = project.run(*command[:-3], "stages/distill.py", "kd", fails=True).stdout
    assert "kdflow is imported from another folder" in output
