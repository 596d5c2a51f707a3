"""An ensemble as the teacher, from its stage to the student's record, with each source of its logits."""

import json

import pytest
import torch
from settings_files import edit
from stage_project import small_project

from kdflow import config
from kdflow.models import create_model, load_exact, save_weights
from kdflow.training import record
from kdflow.training.record import RunLog, RunRecord, TeacherRecord

EMPTY = {"file": None, "sha256": None, "top1": None}


def run(project, *commands):
    for command in commands:
        done = project.stage(*command)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_from_the_members_to_the_student(tmp_path):
    """One member is from a file, the other one, of the same model, is trained from the next seed."""
    project = small_project(tmp_path)
    options = {"members": ["resnet8", "resnet8"], "temperature": 2.0}
    edit(tmp_path, "recipes/models.yaml", {"pair": {"family": "ensemble", "options": options}})
    file, recipe = tmp_path / "first.safetensors", config.load(tmp_path).models["resnet8"]
    given = {"file": file.name, "sha256": save_weights(create_model("resnet8", recipe, 10, 16), file), "top1": 0.0}
    weights = {**EMPTY, "members": [given, EMPTY]}
    changes = {"teacher": "pair", "methods": ["kd_tlcutmix"], "train_images": 100, "teacher_weights": weights}
    edit(tmp_path, "params.yaml", changes)
    run(project, ("prepare",), ("teacher",))
    folder = tmp_path / "data/teacher"
    teacher = record.read_record(folder / "record.json", TeacherRecord)
    first, second = teacher.members
    assert first.source == f"weights from a file, sha256 {given['sha256']}"
    assert second.source == "trained in this project"
    assert record.read_record(folder / "members/1/training.json", RunLog).settings.seed == 1
    check_the_weights(tmp_path)

    losses = []
    for source in ("online", "views+replay"):
        edit(tmp_path, "params.yaml", {"teacher_logits": source})
        run(project, ("logits",), ("distill", "kd_tlcutmix"), ("evaluate", "kd_tlcutmix"))
        student = record.read_record(tmp_path / "data/records/kd_tlcutmix/seed0.json", RunRecord)
        assert student.teacher_members == (first.sha256, second.sha256)
        assert student.teacher_sha256 == teacher.sha256
        assert student.budget.teacher.epochs == 1
        losses.append(student.curve[0].loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3), "stores round to float16"


def check_the_weights(root):
    """Check that the teacher's weights are those of its members, and that it has their combined logits."""
    experiment = config.load(root)
    run, folder = experiment.teacher_run(), root / "data/teacher"
    pair = create_model("pair", run.model, run.classes, run.image_size).eval()
    load_exact(pair, folder / "model.safetensors")
    x, logits = torch.randn(5, 3, run.image_size, run.image_size), []
    for index in range(2):
        member = create_model("resnet8", experiment.models["resnet8"], run.classes, run.image_size).eval()
        load_exact(member, folder / f"members/{index}/model.safetensors")
        logits.append(member(x))
    mean = torch.stack([(one / 2).softmax(1) for one in logits]).mean(0)
    torch.testing.assert_close((pair(x) / 2).softmax(1), mean)
    classes = json.loads((folder / "teacher_classes.json").read_text())
    assert set(classes) <= set(range(10))
