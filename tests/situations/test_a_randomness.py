"""The same seed gives the same weights where a model draws random numbers: dropout and stochastic depth."""

import gc
import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch
import torchvision
from small import DATA, METHODS, online_source, run_of, teacher_for

from kdflow.config import Method, Model, RunSettings
from kdflow.core.progress import Event, RunUpdate
from kdflow.data import ImageSet, Loaded
from kdflow.training import checkpoint
from kdflow.training.loop import fit
from kdflow.training.step import new_student

KD = METHODS["kd"]
NAMES = torchvision.models.list_models(module=torchvision.models)
IN_CI = ["densenet121", "efficientnet_b1", "regnet_y_400mf", "swin_t"]
SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}  # others: 64
TIMM = ["mobilenetv3_small_050", "efficientnet_lite0", "mixer_s32_224", "deit_tiny_patch16_224"]


class StopError(Exception):
    """Raised in place of an interruption."""


def student_run(name: str, size: int, method: Method = KD, family: str = "torchvision") -> RunSettings:
    model = Model(family=family, options={"name": name})
    change = {"architecture": name, "model": model, "image_size": size}
    return run_of(method, epochs=2, batch_size=10, lr=0.001).model_copy(update=change)


def enlarged(part: ImageSet, images: int, size: int) -> ImageSet:
    factor = -(-size // 8)
    pixels = part.images[:images].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return ImageSet(pixels[:, :, :size, :size], part.labels[:images])


def trained(run: RunSettings, file: Path, stop: bool = False) -> tuple[str, list[float]]:
    """Train on the images of `small`, enlarged; return a hash of all weights and the first loss of each epoch."""
    torch.seed()  # as in a new process
    train, test = (enlarged(part, run.train_images, run.image_size) for part in (DATA.train, DATA.test))
    data = Loaded(train, test, DATA.class_names, DATA.sha256)
    learner = new_student(run, train.labels)

    def emit(event: Event) -> None:
        if stop and isinstance(event, RunUpdate) and event.epoch == 1:
            raise StopError

    progress = fit("run", run, data, learner, online_source(run, teacher_for(run.method)), file, "k" * 64, emit)
    digest = hashlib.sha256()
    for value in learner.state_dict().values():
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest(), [point.first_step_loss for point in progress.curve]


def check(run: RunSettings, folder: Path) -> list[float]:
    """Check that a run in one go and one that is interrupted and resumed, each in a new process, give equal weights."""
    once, losses = trained(run, folder / "once")
    with pytest.raises(StopError):
        trained(run, folder / "stopped", stop=True)
    gc.collect()  # the largest models with their gradients have 8 GB
    resumed, _ = trained(run, folder / "stopped")
    assert resumed == once
    return losses


@pytest.fixture
def in_memory(monkeypatch):
    """Checkpoints stay in memory: writing those of large models takes most of the time."""
    kept = {}

    def save(path, model, optimizer, progress):
        if path.name == "stopped":
            kept[path] = model.state_dict(), optimizer.state_dict(), progress

    def load(path, model, optimizer, run):
        if path not in kept:
            return None
        weights, state, progress = kept.pop(path)
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
        return progress

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(checkpoint, "load", load)


def two_steps(run: RunSettings) -> RunSettings:
    """Return the run with two steps of two images in each epoch."""
    training = run.training.model_copy(update={"batch_size": 2})
    return run.model_copy(update={"train_images": 4, "training": training})


@pytest.mark.parametrize(
    ("name", "method"),
    [("mobilenet_v2", "kd_tlcutmix_pick"), ("mobilenet_v3_small", "kd"), ("efficientnet_b0", "ce")],
)
def test_dropout_and_stochastic_depth_draw_from_the_seed(tmp_path, name, method):
    check(student_run(name, 32, METHODS[method]), tmp_path)


def test_golden_losses_of_a_model_with_dropout(tmp_path):
    """Dropout draws on the CPU, so that every processor draws the same masks."""
    _, losses = trained(student_run("mobilenet_v2", 32), tmp_path / "run")
    assert losses[0] == pytest.approx(10.151951, rel=1e-4)  # later ones depend on the processor's rounding


def test_another_seed_draws_other_masks(tmp_path):
    run = student_run("mobilenet_v2", 32)
    _, losses = trained(run, tmp_path / "a")
    _, other = trained(run.model_copy(update={"seed": 4}), tmp_path / "b")
    assert losses != other


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_CI else pytest.mark.long) for name in NAMES]
)
def test_every_torchvision_student_repeats_and_resumes(tmp_path, in_memory, name):
    check(two_steps(student_run(name, SIZES.get(name, 64), METHODS["ce"])), tmp_path)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", TIMM)
def test_timm_students_repeat_and_resume(tmp_path, in_memory, name):
    check(two_steps(student_run(name, 224, METHODS["ce"], family="timm")), tmp_path)
