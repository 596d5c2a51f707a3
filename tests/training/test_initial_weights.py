"""Runs that start from the weights of a file."""

import pytest
import torch
from small import DATA, METHODS, STUDENT, online_source, run_of, same, state_of, teacher_for

from kdflow.config import InitialWeights
from kdflow.core.progress import RunUpdate
from kdflow.methods.views import BaseViewTransform
from kdflow.models import create_model, save_weights
from kdflow.training import loop
from kdflow.training.loop import fit
from kdflow.training.run import teacher_extractor
from kdflow.training.step import new_student

FROZEN = run_of(METHODS["kd"], freeze_backbone=2, ema=0.5)


class StopError(Exception):
    """Raised from emit, as an interruption would be."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(4)
    file = tmp_path_factory.mktemp("initial") / "w.safetensors"
    save_weights(create_model("small", STUDENT, 9, 8), file)
    return file


def trained(run, weights, file, stop=None):
    learner = new_student(run, DATA.train.labels, weights)

    def emit(event):
        if isinstance(event, RunUpdate) and (event.epoch, event.done) == stop:
            raise StopError

    progress = fit("run", run, DATA, learner, online_source(run, teacher_for(run.method)), file, "k" * 64, emit)
    return progress.curve, learner


def test_the_head_is_drawn_from_the_seed(weights):
    run = run_of(METHODS["kd"])
    first, again = (new_student(run, DATA.train.labels, weights) for _ in range(2))
    other = new_student(run.model_copy(update={"seed": 4}), DATA.train.labels, weights)
    assert same(state_of(first), state_of(again)) and first.head_note == "new head of 4 classes, was 9"
    assert torch.equal(first.student.conv1.weight, other.student.conv1.weight)
    assert not torch.equal(first.student.fc.weight, other.student.fc.weight)
    plain = new_student(run, DATA.train.labels)
    assert torch.equal(first.student.fc.weight, plain.student.fc.weight), "that of a run without initial weights"


def test_a_frozen_backbone_keeps_its_weights_and_statistics(weights, tmp_path):
    _, learner = trained(run_of(METHODS["kd_tlcutmix_pick"], freeze_backbone=3), weights, tmp_path / "c")
    start = state_of(new_student(FROZEN, DATA.train.labels, weights).student)
    changed = {key for key, value in state_of(learner.student).items() if not torch.equal(value, start[key])}
    assert changed == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("stop", [(1, 4), (2, 8)])
def test_a_resumed_run_with_a_frozen_backbone_ends_with_the_same_digits(weights, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(loop, "REPORT_EVERY", 0.0)
    curve, learner = trained(FROZEN, weights, tmp_path / "a")
    assert any(not torch.equal(p, q) for p, q in zip(
        learner.student.conv1.parameters(), new_student(FROZEN, DATA.train.labels, weights).student.conv1.parameters(),
        strict=True,
    )), "it is trained in the last epoch"  # fmt: skip
    with pytest.raises(StopError):
        trained(FROZEN, weights, tmp_path / "b", stop)
    resumed_curve, resumed = trained(FROZEN, weights, tmp_path / "b")
    assert resumed_curve == curve and same(state_of(resumed), state_of(learner))


def test_the_teacher_sees_the_pixels_with_its_mean_and_std():
    run, teacher = run_of(METHODS["kd"]), teacher_for(METHODS["kd"])
    mean, std = (0.1, 0.2, 0.35), (0.2, 0.5, 0.4)
    other = run.model_copy(update={"teacher": run.teacher.model_copy(update={"mean": mean, "std": std})})
    images, shift = DATA.train.images, torch.full((20, 2), 2)
    flip = torch.zeros(20, dtype=torch.bool)
    other_view = run.base_view.model_copy(update={"mean": mean, "std": std})
    views = {
        name: BaseViewTransform(view, torch.device("cpu"))(images, shift, flip)
        for name, view in (("x", run.base_view), ("teacher", other_view))
    }
    with torch.no_grad():
        logits = teacher_extractor(other, teacher)(views["x"]).logits
        expected = teacher(views["teacher"])
    assert torch.allclose(logits, expected, atol=1e-5)
    assert not torch.allclose(expected, teacher(views["x"]), atol=1e-2)


def test_settings_without_initial_weights_have_the_same_hash():
    run = run_of(METHODS["kd"])
    assert "initial" not in run.model_dump() and "mean" not in run.teacher.model_dump()
    named = run.model_copy(update={"initial": InitialWeights(source="file w", sha256="0" * 64)})
    assert named.sha256 != run.sha256
