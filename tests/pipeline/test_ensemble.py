"""An ensemble as the teacher, from its stage to the student's record, with each source of its logits."""

import json

import pytest
import torch
from settings_files import edit
from stage_project import small_project

from kdflow import config
from kdflow.models import create_model, load_exact
from kdflow.training import record
from kdflow.training.record import RunRecord, TeacherRecord

SOURCES = ("online", "replay", "views")


@pytest.mark.slow
def test_from_the_members_to_the_student(tmp_path):
    project = small_project(tmp_path)
    options = {"members": ["resnet8", "resnet8"], "temperature": 2.0}
    edit(tmp_path, "recipes/models.yaml", {"pair": {"family": "ensemble", "options": options}})
    edit(tmp_path, "params.yaml", {"teacher": "pair", "methods": ["kd"], "train_images": 100})
    for command in (("prepare",), ("teacher",)):
        done = project.stage(*command)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "data/teacher"
    teacher = record.read_record(folder / "record.json", TeacherRecord)
    first, second = teacher.members
    assert first.sha256 != second.sha256, "the members have different seeds"
    assert teacher.source == "resnet8 trained in this project"
    check_the_weights(tmp_path)

    digits = {}
    for source in SOURCES:
        edit(tmp_path, "params.yaml", {"teacher_logits": source})
        for command in (("logits",), ("distill", "kd"), ("evaluate", "kd")):
            done = project.stage(*command)
            assert done.returncode == 0, done.stderr
        run = record.read_record(tmp_path / "data/records/kd/seed0.json", RunRecord)
        assert run.teacher_members == (first.sha256, second.sha256)
        assert run.teacher_sha256 == teacher.sha256
        assert run.budget.teacher.epochs == 1
        digits[source] = run.curve[0].loss
    assert digits["replay"] == pytest.approx(digits["online"], rel=1e-3), "replay rounds to float16"
    assert digits["views"] == pytest.approx(digits["online"], rel=1e-3)

    # Weights of the first member from its file, the other one trained again.
    given = {"file": "first.safetensors", "sha256": first.sha256, "top1": first.accuracy.top1}
    (folder / "members/0/model.safetensors").rename(tmp_path / "first.safetensors")
    empty = {"file": None, "sha256": None, "top1": None}
    edit(tmp_path, "params.yaml", {"teacher_weights": {**empty, "members": [given, empty]}})
    done = project.stage("teacher")
    assert done.returncode == 0, done.stderr
    again = record.read_record(folder / "record.json", TeacherRecord)
    assert [member.sha256 for member in again.members] == [first.sha256, second.sha256]
    assert again.sha256 == teacher.sha256
    assert f"sha256 {first.sha256}" in again.source


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
