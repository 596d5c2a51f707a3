"""Each optional setting of training changes what it states, and a resumed run ends with the same digits."""

import math

import pytest
import torch
from small import CPU, DATA, METHODS, batches_of, online_source, run_of, same, state_of, step_of, teacher_for
from torch import nn
from torch.nn import functional as F

from kdflow.config import Precision, Training
from kdflow.core.progress import RunUpdate
from kdflow.data import Loaded
from kdflow.training import loop
from kdflow.training.epoch_plan import draw_plan
from kdflow.training.evaluate import accuracy
from kdflow.training.loop import fit
from kdflow.training.record import best_held_out
from kdflow.training.sampling import class_weights, held_out, split
from kdflow.training.schedule import learning_rate
from kdflow.training.step import new_student

SETTINGS = {
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "cosine": {"schedule": "cosine", "warmup_epochs": 1},
    "label smoothing": {"label_smoothing": 0.1},
    "ema": {"ema": 0.9},
    "clip_grad": {"clip_grad": 0.1},
    "weights": {"class_balance": "weights", "val_share": 0.15},
    "sampler": {"class_balance": "sampler"},
    "early_stop": {"val_share": 0.3, "early_stop": 1, "epochs": 5},
    "early_stop of ema": {"val_share": 0.3, "early_stop": 2, "ema": 0.5, "optimizer": "adamw"},
}
RUNS = {name: run_of(METHODS["kd_tlcutmix"], **changes) for name, changes in SETTINGS.items()}
RUNS["bfloat16"] = run_of(METHODS["kd"]).model_copy(
    update={"precision": Precision(student="bfloat16", teacher="bfloat16")}
)


class StopError(Exception):
    """Raised from emit, as an interruption would be."""


def trained(run, file, stop=None, data=DATA):
    learner = new_student(run, data.train.labels)

    def emit(event):
        if isinstance(event, RunUpdate) and (event.epoch, event.done) == stop:
            raise StopError

    progress = fit("run", run, data, learner, online_source(run, teacher_for(run.method)), file, "k" * 64, emit)
    return progress.curve, learner


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trained(run_of(METHODS["kd_tlcutmix"]), tmp_path_factory.mktemp("plain") / "c")


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_with_the_same_digits_which_differ_from_those_without_the_setting(
    plain, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(loop, "REPORT_EVERY", 0.0)
    curve, learner = trained(RUNS[name], tmp_path / "a")
    steps = math.ceil(RUNS[name].fitted_images / 8)
    with pytest.raises(StopError):
        trained(RUNS[name], tmp_path / "b", (1, steps + 1))
    resumed_curve, resumed = trained(RUNS[name], tmp_path / "b")
    assert resumed_curve == curve
    assert same(state_of(resumed), state_of(learner))
    assert not same(state_of(plain[1].exported), state_of(learner.exported))


def test_settings_without_them_have_the_same_hash_and_file():
    run = run_of(METHODS["kd"])
    assert list(run.training.model_dump()) == list(Training.model_fields)[:8]
    for changes in SETTINGS.values():
        changed = run_of(METHODS["kd"], **changes)
        assert changed.sha256 != run.sha256
        assert type(changed).model_validate_json(changed.model_dump_json()) == changed


# --- the schedule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(4, 0, 5), (6, 2, 3), (10, 1, 7)])
def test_the_rates_of_warm_up_and_cosine_are_those_of_torch(epochs, warmup, steps):
    training = run_of(METHODS["ce"], epochs=epochs, schedule="cosine", warmup_epochs=warmup).training
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=training.lr)
    before, after = warmup * steps, (epochs - warmup) * steps
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, after)
    if warmup:
        rising = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (before + 1), total_iters=before)
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, scheduler], [before])
    for step in range(epochs * steps):
        assert learning_rate(training, step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_a_warm_up_comes_before_the_milestones():
    training = run_of(METHODS["ce"], epochs=8, warmup_epochs=2).training
    rates = [learning_rate(training, step, 4) for step in range(32)]
    assert rates[:8] == pytest.approx([0.05 * step / 9 for step in range(1, 9)])
    assert rates[8:16] == [0.05] * 8 and rates[16] == pytest.approx(0.005)


# --- the step --------------------------------------------------------------------------------------------------


def one_step(**training):
    run = run_of(METHODS["ce"], **training)
    learner = new_student(run, DATA.train.labels)
    step = step_of(run, learner, None)
    before = state_of(learner.student)
    return step(batches_of(run)[0], 0.05).loss, before, learner


def gradient_norm(learner):
    return math.sqrt(sum(p.grad.square().sum().item() for p in learner.student.parameters()))


def test_the_gradient_is_clipped():
    assert gradient_norm(one_step()[2]) > 0.5
    assert gradient_norm(one_step(clip_grad=0.5)[2]) == pytest.approx(0.5, rel=1e-4)


def test_the_moving_average_is_evaluated_and_exported():
    _, _, learner = one_step(ema=0.75)
    first = state_of(learner.student)
    assert same(first, state_of(learner.average.module)), "the first step is the start of the average"
    with torch.no_grad():
        learner.student.fc.bias.add_(1.0)
    learner.average.update_parameters(learner.student)
    assert learner.evaluated is learner.exported is learner.average.module
    assert torch.allclose(learner.exported.fc.bias, first["fc.bias"] + 0.25)


def test_label_smoothing_and_class_weights_are_those_of_torch():
    run = run_of(METHODS["ce"], label_smoothing=0.2, class_balance="weights")
    labels = torch.tensor([0] * 12 + [1] * 4 + [2] * 3 + [3])
    weights = class_weights(run, labels, None)
    assert weights.tolist() == pytest.approx([20 / 48, 20 / 16, 20 / 12, 20 / 4])
    step = step_of(run, new_student(run, labels), None)
    step.class_weights = weights
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(logits, labels, weights, label_smoothing=0.2)  # the mean of the weights is 1
    assert step.cross_entropy(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_adamw_is_that_of_torch(tmp_path):
    run = run_of(METHODS["ce"], optimizer="adamw", lr=0.01, weight_decay=0.1, epochs=1)
    _, learner = trained(run, tmp_path / "c")
    other = new_student(run, DATA.train.labels)
    step = step_of(run, other, None)
    step.optimizer = torch.optim.AdamW(other.parameters(), weight_decay=0.1)
    for batch in batches_of(run):
        step(batch, 0.01)
    assert same(state_of(other), state_of(learner))


# --- images ----------------------------------------------------------------------------------------------------


def test_held_out_images_are_a_fraction_of_every_class():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[
        torch.randperm(100, generator=torch.Generator().manual_seed(1))
    ]
    index = held_out(labels, 20)
    assert labels[index].bincount().tolist() == [10, 6, 4]
    assert len(index.unique()) == 20 and torch.equal(index, held_out(labels, 20))


def test_an_epoch_has_no_held_out_image():
    run = run_of(METHODS["kd"], val_share=0.25)
    sampling, validation = split(run, DATA.train)
    assert (run.fitted_images, len(validation)) == (15, 5)
    plan = draw_plan(0, 0, run.fitted_images, 8, 8, run.base_view, None, CPU, sampling)
    assert sorted(plan.order.tolist()) == sampling.index.tolist()
    out = held_out(DATA.train.labels, 5)
    assert not set(out.tolist()) & set(plan.order.tolist())
    assert torch.equal(validation.images, DATA.train.images[out])


def test_the_sampler_draws_every_class_equally_often():
    labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 70 + [3] * 30)
    images = type(DATA.train)(torch.zeros(1000, 3, 1, 1, dtype=torch.uint8), labels)
    run = run_of(METHODS["kd"], class_balance="sampler").model_copy(update={"train_images": 1000})
    sampling, none = split(run, images)
    order = draw_plan(0, 0, 1000, 8, 8, run.base_view, None, CPU, sampling).order
    assert none is None and len(order) == 1000
    assert all(200 < count < 300 for count in labels[order].bincount().tolist())
    assert not torch.equal(order, draw_plan(0, 1, 1000, 8, 8, run.base_view, None, CPU, sampling).order)


def test_early_stopping_exports_the_best_weights_on_held_out_images(tmp_path):
    run = run_of(METHODS["kd"], val_share=0.3, early_stop=2, epochs=12, eval_every=12)
    curve, learner = trained(run, tmp_path / "c")
    best = best_held_out(curve)
    assert len(curve) == best.epoch + 2 < 12
    assert accuracy(learner.exported, split(run, DATA.train)[1], run.base_view).top1 == best.held_out_top1
    assert [point.top1 is not None for point in curve] == [False] * (len(curve) - 1) + [True], "tested when it stops"


def test_test_images_decide_nothing(tmp_path):
    run = run_of(METHODS["kd"], val_share=0.3, early_stop=1, epochs=5)
    wrong = type(DATA.test)(DATA.test.images, (DATA.test.labels + 1) % 4)
    other = Loaded(DATA.train, wrong, DATA.class_names, DATA.sha256)
    learners = [trained(run, tmp_path / name, data=data)[1] for name, data in (("a", DATA), ("b", other))]
    assert same(state_of(learners[0]), state_of(learners[1]))
