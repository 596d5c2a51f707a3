"""`kdflow.distill` against the pipeline's run, and the forms of data and mistakes in them."""

import gc
import os
import pickle
import threading

import pytest
import torch
from small import METHODS, VIEWS, run_of, same, state_of, teacher_for
from torch import nn
from torch.utils.data import Dataset, Subset
from tracked import read

import kdflow
from kdflow import data
from kdflow.config import Architecture, Compute
from kdflow.data import Split, Splits
from kdflow.models import create_model, save_weights
from kdflow.training import record
from kdflow.training.batches import InMemoryBatches
from kdflow.training.epoch_plan import draw_plan
from kdflow.training.job import Job
from kdflow.training.run import run_job

LAYERS = kdflow.Layers(features=("conv1", "layer1", "layer2", "layer3"), head="fc")
PIXELS = torch.randint(256, (30, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(30) % 4
TRAIN, TEST = (PIXELS[:20], LABELS[:20]), (PIXELS[20:], LABELS[20:])
QUICK = {"epochs": 2, "batch_size": 8, "lr": 0.05, "progress": False, "seed": 3, "device": "cpu"}


def student_of(run):
    torch.manual_seed(run.seed)
    return create_model(run.architecture, run.model, run.classes, run.image_size)


def pipeline_run(folder, run):
    """Train as a stage of the pipeline does; return the log and the weights."""
    split = [Split(images.permute(0, 2, 3, 1).numpy(), labels.numpy()) for images, labels in (TRAIN, TEST)]
    data.write("tiny", 8, Splits(*split, ["a", "b", "c", "d"]), folder / "d.h5")
    teacher = teacher_for(run.method)
    if teacher is not None:
        save_weights(teacher, folder / "teacher.safetensors")
    job = Job(
        name="seed 3",
        run=run,
        budget=record.Budget(epochs=2, full_epochs=2, train_images=20, full_train_images=20, demo=False),
        dataset=folder / "d.h5",
        teacher=None if teacher is None else folder / "teacher.safetensors",
        views_store=None,
        weights=folder / "student.safetensors",
        log=folder / "log.json",
        work_dir=folder / "work",
        compute=Compute(
            device="cpu",
            threads=torch.get_num_threads(),
            max_parallel_runs=1,
            processes_per_run=1,
            replay_gb=1.0,
            loader_workers=0,
        ),
    )
    run_job(job, lambda _: None)
    return record.read_record(folder / "log.json", record.RunLog)


@pytest.mark.parametrize("name", ["kd_tlcutmix_pick", "sp_kd", "dkd", "ce"])
def test_it_gives_the_same_digits_as_the_pipeline(tmp_path, name):
    run = run_of(METHODS[name], epochs=2, eval_every=1, lr_milestones=(0.5,))
    log = pipeline_run(tmp_path, run)
    seen = []
    result = kdflow.distill(
        student_of(run),
        teacher_for(run.method),
        TRAIN,
        TEST,
        method=METHODS[name],
        view=VIEWS,
        training={**run.training.model_dump()},
        student_layers=LAYERS,
        teacher_layers=LAYERS,
        on_epoch=seen.append,
        progress=False,
        seed=3,
        device="cpu",
    )
    assert result.curve == log.curve == tuple(seen)
    assert result.save(tmp_path / "by_api.safetensors") == log.weights_sha256
    assert result.accuracy.top1 == log.curve[-1].top1


def test_a_tracker_gets_the_curve_and_the_settings(tmp_path):
    pytest.importorskip("tensorboard")
    run = run_of(METHODS["ce"])
    with kdflow.RunTracker("tensorboard", tmp_path, "ce", {"lr": 0.05, "method": {"ce": 1}}) as tracker:
        result = kdflow.distill(student_of(run), None, TRAIN, TEST, method="ce", view=VIEWS, on_epoch=tracker, **QUICK)
    (written,) = read("tensorboard", tmp_path).values()
    assert [epoch for epoch, _ in written.curves["train/loss"]] == [1, 2]
    assert [loss for _, loss in written.curves["train/loss"]] == pytest.approx([one.loss for one in result.curve])
    assert written.final == {"final/top1": pytest.approx(result.accuracy.top1)}
    assert written.settings == {"lr": "0.05", "method.ce": "1.0"}


def test_a_dataset_with_the_same_views_gives_the_same_digits():
    """A dataset that makes the views of the plan itself is trained on like tensors."""
    run = run_of(METHODS["kd"])

    class Views(Dataset):
        def __init__(self):
            plan, batches = draw_plan(3, 0, 20, 8, 8, VIEWS, None, torch.device("cpu")), InMemoryBatches
            view = batches(data.ImageSet(*TRAIN), VIEWS)
            self.images = {int(i): x for step in plan for i, x in zip(step.index, view.batch(step).x, strict=True)}

        def __len__(self):
            return 20

        def __getitem__(self, index):
            return self.images[index], int(LABELS[index])

    test = torch.randn(10, 3, 8, 8), LABELS[20:]
    states = []
    for train, view in ((TRAIN, VIEWS), (Views(), None)):
        student = student_of(run)
        kdflow.distill(student, teacher_for(run.method), train, test, method="kd", view=view, **{**QUICK, "epochs": 1})
        states.append(state_of(student))
    assert same(*states)


class Noisy(Dataset):
    """Images with noise from torch's global generator, as random transforms draw it."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] / 255 + 0.1 * torch.randn(3, 8, 8), int(self.labels[index])


def test_a_dataset_of_random_transforms_is_repeatable_with_any_number_of_workers():
    run, states = run_of(METHODS["kd"]), []
    before = torch.get_rng_state()
    for workers in (0, 2):
        student = student_of(run)
        before = torch.get_rng_state()
        kdflow.distill(student, teacher_for(run.method), Noisy(*TRAIN), Noisy(*TEST), workers=workers, **QUICK)
        states.append(state_of(student))
    assert same(*states)
    assert before is not None


def test_workers_do_not_run_the_exit_functions_of_threads_that_they_do_not_have(monkeypatch, tmp_path):
    """Prefect registers such a function when a flow runs; in a forked worker it fails."""
    main = os.getpid()
    monkeypatch.setattr(threading, "_threading_atexits", [lambda: os.getpid() != main and (tmp_path / "ran").touch()])
    run = run_of(METHODS["kd"])
    kdflow.distill(student_of(run), teacher_for(run.method), Noisy(*TRAIN), Noisy(*TEST), workers=2, **QUICK)
    gc.collect()
    assert not (tmp_path / "ran").exists()


def test_models_keep_their_modes_have_no_hooks_and_the_teacher_its_weights():
    run = run_of(METHODS["sp_kd"])
    student, teacher = student_of(run), teacher_for(run.method).train()
    before = state_of(teacher)
    layers = {"student_layers": LAYERS, "teacher_layers": LAYERS}
    result = kdflow.distill(student, teacher, TRAIN, TEST, method="sp_kd", view=VIEWS, **layers, **QUICK)
    assert result.student is student and not student.training and teacher.training
    assert same(state_of(teacher), before)
    pickle.dumps(student)
    assert result.teacher_accuracy.top1 <= 100 and 0 <= result.agreement <= 100
    assert result.settings.model.family == "kdflow.models.families.resnet:ResNet"


def test_labels_come_from_targets_and_are_checked():
    class Wrong(Noisy):
        targets = [0] * 20

    run = run_of(METHODS["kd"])
    with pytest.raises(kdflow.UserError, match=r"item \d+: its label is \d, in `targets` it is 0"):
        kdflow.distill(student_of(run), teacher_for(run.method), Wrong(*TRAIN), Noisy(*TEST), **QUICK)
    part = Noisy(*TRAIN)
    part.targets = LABELS[:20].tolist()
    kdflow.distill(student_of(run), teacher_for(run.method), Subset(part, range(4, 16)), Noisy(*TEST), **QUICK)


FLOATS = torch.zeros(4, 3, 8, 8), torch.arange(4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "kdd"}, "method: unknown name 'kdd'; did you mean 'kd'?"),
        ({"teacher": None}, "teacher: the method needs one"),
        ({"method": "sp_kd"}, "student_layers: the method compares features"),
        ({"train": TRAIN}, "train: uint8 images need the mean and std"),
        ({"train": (FLOATS[0], FLOATS[1] + 1)}, "train: labels from 1 to 4; the student has 4 logits"),
        ({"train": (FLOATS[0][:, :1], FLOATS[1])}, r"train: expected images \[n, 3, size, size\]"),
        ({"test": (torch.zeros(4, 3, 9, 9), FLOATS[1])}, "test: images of 9 px, those of train have 8"),
        ({"train": [1, 2]}, "train: item 0: expected .image, label., found int"),
        ({"train": Noisy(*TRAIN), "view": VIEWS}, "train: view: only for tensors"),
        ({"training": {"momentun": 0.9}}, "training: momentun: unknown key; did you mean 'momentum'?"),
        ({"lr": -1.0}, "training: lr: input should be greater than 0"),
        ({"student": nn.Identity()}, "student: expected a tensor of logits"),
        ({"device": "cuda:9"}, "cuda:9"),
    ],
)
def test_mistakes_are_one_line(changes, message):
    run = run_of(METHODS["kd"])
    arguments = {"student": student_of(run), "teacher": teacher_for(run.method), "train": FLOATS, "test": FLOATS}
    with pytest.raises(kdflow.UserError, match=message) as error:
        kdflow.distill(**{**arguments, **QUICK, **changes})
    assert "\n" not in str(error.value)


def test_a_class_inside_a_function_is_described():
    class Net(nn.Sequential):
        pass

    net = Net(nn.Flatten(), nn.Linear(192, 4))
    result = kdflow.distill(net, None, FLOATS, FLOATS, method="ce", **QUICK)
    assert result.settings.architecture == "Net" and result.teacher_accuracy is None
    assert isinstance(result.settings.teacher, Architecture | None)


def test_averaged_weights_and_held_out_images_work_with_a_dataset():
    run, students = run_of(METHODS["kd"]), []
    for training in ({}, {"ema": 0.9}, {"ema": 0.9, "val_share": 0.2, "early_stop": 2}):
        students.append(student_of(run))
        arguments = (students[-1], teacher_for(run.method), Noisy(*TRAIN), Noisy(*TEST))
        result = kdflow.distill(*arguments, training=training, **QUICK)
        assert (result.curve[-1].held_out_top1 is None) == ("val_share" not in training)
        assert result.accuracy.top1 in [point.top1 for point in result.curve]
    assert not any(same(state_of(students[i]), state_of(students[j])) for i, j in ((0, 1), (1, 2)))
