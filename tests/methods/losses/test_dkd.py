"""Decoupled knowledge distillation equals its definition, and needs neither features nor a single process."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from runs import key_of, trained
from samples import CLASSES, assert_trains_the_student_only, call, outputs, teacher_outputs
from small import DATA, METHODS, TEACHER, batches_of, online_source, run_of, same, state_of, step_of, teacher_for

from kdflow import config
from kdflow.config import Architecture, Model, Precision
from kdflow.methods.losses import dkd, kl_per_sample
from kdflow.models.features import Outputs
from kdflow.training import teacher_logits
from kdflow.training.run import teacher_extractor
from kdflow.training.step import new_student
from kdflow.training.teacher_logits.replay import Replay, ReplayCache

NONE = Outputs(torch.zeros(2, CLASSES), (), None)


def _build(**options):
    return dkd.build(NONE, NONE, torch.arange(20) % CLASSES, **{"warmup": 0.0} | options)


def _logits(rows):
    return Outputs(torch.tensor(rows, dtype=torch.float64), (), None)


def _random(b, seed, scale=3.0, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    return _logits((scale * torch.randn(b, classes, generator=generator)).tolist())


# --- the loss ----------------------------------------------------------------------------------------------


def _softmax(logits):
    powers = [math.exp(value) for value in logits]
    return [power / sum(powers) for power in powers]


def _kl(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def _oracle(student, teacher, labels, alpha, beta, temperature):
    """Compute the paper's Eq. 7 by a loop over images."""
    total = 0.0
    for s, t, label in zip(student.logits.tolist(), teacher.logits.tolist(), labels.tolist(), strict=True):
        p_s, p_t = (_softmax([value / temperature for value in logits]) for logits in (s, t))
        tckd = _kl([p_t[label], 1 - p_t[label]], [p_s[label], 1 - p_s[label]])
        other_s, other_t = ([p[c] / (1 - p[label]) for c in range(len(p)) if c != label] for p in (p_s, p_t))
        total += temperature**2 * (alpha * tckd + beta * _kl(other_t, other_s))
    return total / len(labels)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.5, 0.0, 1.0), (0.0, 2.0, 0.7)])
@pytest.mark.parametrize(("b", "classes"), [(7, 5), (1, 2), (3, 100)])
def test_equals_a_float64_loop(b, classes, alpha, beta, temperature):
    student, teacher = _random(b, 0, classes=classes), _random(b, 1, classes=classes)
    labels = torch.randint(classes, (b,), generator=torch.Generator().manual_seed(2))
    loss = _build(alpha=alpha, beta=beta, temperature=temperature)
    expected = _oracle(student, teacher, labels, alpha, beta, temperature)
    assert call(loss, student, teacher, labels=labels).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    student, teacher = (replace(model, logits=model.logits.float()) for model in (student, teacher))
    assert call(loss, student, teacher, labels=labels).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_equals_values_worked_by_hand():
    """One image of class 0, T = 1; p_t = (1/2, 1/4, 1/4) and p_s = (1/4, 1/4, 1/2).

    TCKD = 1/2 log(1/2 / 1/4) + 1/2 log(1/2 / 3/4) = 1/2 log(4/3) = 0.143841; the other classes have q_t = (1/2, 1/2)
    and q_s = (1/3, 2/3), so NCKD = 1/2 log(3/2) + 1/2 log(3/4) = 1/2 log(9/8) = 0.058892.
    """
    student = _logits([[math.log(1), math.log(1), math.log(2)]])
    teacher = _logits([[math.log(2), math.log(1), math.log(1)]])
    labels = torch.tensor([0])
    for alpha, beta, expected in ((1.0, 0.0, 0.143841), (0.0, 1.0, 0.058892), (1.0, 8.0, 0.614973)):
        loss = _build(alpha=alpha, beta=beta, temperature=1.0)
        assert call(loss, student, teacher, labels=labels).item() == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(0.5, 8))
def test_the_usual_divergence_has_the_weight_of_the_paper_s_eq_6(b, seed, temperature):
    """KL(p_t || p_s) = TCKD + (1 - p_t,y) NCKD, for each image."""
    student, teacher = _random(b, seed), _random(b, seed + 1)
    labels = torch.randint(CLASSES, (b,), generator=torch.Generator().manual_seed(seed))
    tckd, nckd = (_build(alpha=a, beta=1 - a, temperature=temperature) for a in (1.0, 0.0))
    expected = temperature**2 * kl_per_sample(teacher.logits, student.logits, temperature)
    p_t = (teacher.logits / temperature).softmax(1)
    for i in range(b):
        image = [replace(model, logits=model.logits[i : i + 1]) for model in (student, teacher)]
        parts = [call(loss, *image, labels=labels[i : i + 1]).item() for loss in (tckd, nckd)]
        found = parts[0] + (1 - p_t[i, labels[i]].item()) * parts[1]
        assert found == pytest.approx(expected[i].item(), rel=1e-7, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(-50, 50))
def test_zero_for_equal_logits_never_negative_and_invariant_to_constants(b, seed, constant):
    student, teacher, loss = _random(b, seed), _random(b, seed + 1), _build()
    assert call(loss, student, student).item() == pytest.approx(0, abs=1e-12)
    shifted = replace(student, logits=student.logits + constant)
    assert call(loss, student, teacher).item() > 0
    assert call(loss, shifted, teacher).item() == pytest.approx(call(loss, student, teacher).item(), rel=1e-8)


@pytest.mark.parametrize("b", [1, 4])
def test_trains_the_student_only(b):
    assert all(grad.any() for grad in assert_trains_the_student_only(_build(), b))


@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
def test_huge_logits_give_finite_gradients(size):
    student = torch.tensor([[size, -size, 0.0], [-size, 0.0, size]], requires_grad=True)
    teacher = torch.tensor([[-size, size, 0.0], [size, size, size]])
    value = call(_build(), Outputs(student, (), None), Outputs(teacher, (), None), labels=torch.tensor([0, 2]))
    assert value.isfinite()
    value.backward()
    assert student.grad.isfinite().all()


def test_gradients_equal_finite_differences():
    student, teacher, loss = _random(3, 0).logits.requires_grad_(), _random(3, 1), _build()
    assert torch.autograd.gradcheck(lambda logits: call(loss, Outputs(logits, (), None), teacher), (student,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, r"alpha: must be finite and 0 or more, not -1\.0"),
        ({"beta": math.inf}, "beta: must be finite and 0 or more, not inf"),
        ({"alpha": 0.0, "beta": 0.0}, "alpha and beta are both 0"),
        ({"temperature": 0.0}, r"temperature: must be finite and more than 0, not 0\.0"),
        ({"temperature": math.nan}, "temperature: must be finite and more than 0, not nan"),
        ({"warmup": 1.5}, r"warmup: must be from 0 to 1, not 1\.5"),
        ({"warmup": -0.1}, "warmup: must be from 0 to 1"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"{message}.* in loss.options"):
        _build(**options)


def test_refuses_an_unknown_option():
    with pytest.raises(TypeError, match="gamma"):
        _build(gamma=1.0)


# --- the warm-up -------------------------------------------------------------------------------------------


def test_the_warm_up_is_that_of_the_authors_code():
    """The weight of epoch 1, 2, ... of 240 is min(epoch / 20, 1)."""
    student, teacher, loss = outputs(4), teacher_outputs(4), dkd.build(NONE, NONE, torch.arange(20))
    full = call(loss, student, teacher).item()
    for epoch in (1, 2, 10, 19, 20, 21, 240):
        value = call(loss, student, teacher, run_fraction=epoch / 240).item()
        assert value == pytest.approx(min(epoch / 20, 1) * full, rel=1e-6)


def _run(name="dkd", **settings):
    """Return a run of 3 epochs that warms up in the first two."""
    method = METHODS[name]
    loss = method.loss.model_copy(update={"options": {"warmup": 2 / 3}})
    return run_of(method.model_copy(update={"loss": loss})).model_copy(update=settings)


@pytest.mark.parametrize(("epochs", "epoch", "weight"), [(3, 0, 0.5), (3, 1, 1.0), (3, 2, 1.0), (6, 0, 0.25)])
def test_the_weight_of_a_step_follows_from_its_epoch_and_the_length_of_the_run(epochs, epoch, weight):
    """A step has no counter: its weight is the same whichever steps were computed before."""
    run = _run()
    run = run.model_copy(update={"training": run.training.model_copy(update={"epochs": epochs})})
    batch = batches_of(run, epoch)[0]
    learner = new_student(run, DATA.train.labels)
    step = step_of(run, learner, teacher_for(run.method))
    teacher, _ = step.query_teacher(batch, {})
    with torch.no_grad():
        found = step.base_loss(batch, teacher, None).item()
        step.loss = None
        ce = step.base_loss(batch, teacher, None).item()
        full = call(_build(), step.student_outputs(batch.x), teacher, labels=batch.labels).item()
    assert found - ce == pytest.approx(weight * full, rel=1e-4)


# --- with any model, with stored logits, with a folded teacher -----------------------------------------------


def _train(run, folder, source=None):
    folder.mkdir(exist_ok=True)
    teacher = teacher_for(run.method)
    return trained(run, source or online_source(run, teacher), folder / "checkpoint")


@pytest.mark.parametrize("name", ["dkd", "dkd_tlcutmix_pick"])
def test_replayed_logits_give_the_digits_of_an_online_run(tmp_path, monkeypatch, name):
    run = _run(name)
    expected = _train(run, tmp_path)
    key = {**key_of(run), **teacher_logits.plan_cache_key(run, "cpu")}
    compute, images = Replay.compute, []
    monkeypatch.setattr(Replay, "compute", lambda self, views: images.extend(views.values()) or compute(self, views))
    for views in (1 if name == "dkd" else 3, 0):
        extractor = teacher_extractor(run, teacher_for(run.method))
        source = Replay(extractor, ReplayCache(tmp_path / "replay", key, 10**9), key, 4, "float32", pytest.fail)
        curve, state = _train(run, tmp_path, source)
        assert sum(map(len, images)) == 3 * 20 * views
        assert curve == expected[0] and same(state, expected[1])
        images.clear()


def test_a_folded_teacher_gives_nearly_the_same_losses(tmp_path):
    expected, _ = _train(_run(), tmp_path)
    curve, _ = _train(_run(precision=Precision(fold_teacher=True)), tmp_path)
    assert [point.loss for point in curve] == pytest.approx([point.loss for point in expected], rel=1e-3)
    assert [point.loss for point in curve] != [point.loss for point in expected]


def test_a_model_of_torchvision_without_named_layers_is_trained(tmp_path):
    student = Model(family="torchvision", options={"name": "squeezenet1_1"})
    teacher = Architecture(name="larger", model=TEACHER.model_copy(update={"features": (), "head": None}))
    run = _run(model=student, architecture="squeezenet1_1", teacher=teacher, image_size=32)
    images = replace(DATA.train, images=DATA.train.images.repeat(1, 1, 4, 4))
    learner = new_student(run, DATA.train.labels)
    step = step_of(run, learner, teacher_for(run.method))
    before, batches = state_of(learner), batches_of(run, train=images)
    assert all(step(batch, 0.01).loss.isfinite() for batch in batches)
    assert not same(before, state_of(learner))


def test_the_shipped_recipes_state_the_published_settings():
    methods = config.load(ROOT).methods
    for name in ("dkd", "dkd_tlcutmix_pick"):
        assert not methods[name].needs_features
        options = methods[name].loss.options
        loss = dkd.build(NONE, NONE, torch.arange(20), **options)
        assert (loss.alpha, loss.beta, loss.temperature, loss.warmup) == (1.0, 8.0, 4.0, 20 / 240)
        assert (methods[name].ce, methods[name].loss.weight) == (1.0, 1.0)
