"""The curriculum temperature equals its definition, and its gradient is reversed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    CLASSES,
    assert_finite_for_equal_models,
    assert_resumes_from_its_state,
    assert_trains_the_student_only,
    call,
)
from samples import outputs as sample

from kdflow.methods.losses import ctkd
from kdflow.models.features import Outputs

NONE = Outputs(torch.zeros(2, CLASSES), (), None)


def _build(**options):
    return ctkd.build(NONE, NONE, torch.arange(20) % CLASSES, **options)


def _softmax(logits, temperature):
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def _oracle(student, teacher, a=1.0, start=1.0, span=20.0):
    temperature = start + span / (1 + math.exp(-a))
    total = 0.0
    for s, t in zip(student.logits.tolist(), teacher.logits.tolist(), strict=True):
        p_s, p_t = _softmax(s, temperature), _softmax(t, temperature)
        total += temperature**2 * sum(x * math.log(x / y) for x, y in zip(p_t, p_s, strict=True))
    return total / len(student.logits)


@pytest.mark.parametrize(("a", "options"), [(1.0, {}), (-2.0, {"start": 0.5, "range": 3.0})])
def test_equals_a_float64_loop(a, options):
    student, teacher = sample(6, dtype=torch.float64), sample(6, seed=1, dtype=torch.float64)
    loss = _build(**options)
    loss.a.data.fill_(a)
    expected = _oracle(student, teacher, a, options.get("start", 1.0), options.get("range", 20.0))
    assert call(loss, student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert call(loss, sample(6), sample(6, seed=1)).item() == pytest.approx(expected, rel=1e-4)


def test_equals_a_value_worked_by_hand():
    """The temperature is 1 + 2/2 = 2 for a = 0.

    Logits (2 log 3, 0) and (0, 0) have p_t = (3/4, 1/4) and p_s = (1/2, 1/2).
    T^2 KL = 4 (3/4 log(3/2) + 1/4 log(1/2)) = 0.523248.
    """
    loss = _build(range=2.0)
    loss.a.data.zero_()
    student = Outputs(torch.zeros(1, 2, dtype=torch.float64), (), None)
    teacher = Outputs(torch.tensor([[2 * math.log(3), 0]], dtype=torch.float64), (), None)
    assert call(loss, student, teacher).item() == pytest.approx(0.523248, abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(0, 10**6), st.floats(-3, 3), st.floats(0.01, 1))
def test_the_gradient_of_the_temperature_is_that_of_the_loss_times_minus_w(b, seed, a, run_fraction):
    student, teacher = sample(b, seed=seed, dtype=torch.float64), sample(b, seed=seed + 1, dtype=torch.float64)
    loss = _build(rise=0.5).double()
    loss.a.data.fill_(a)
    call(loss, student, teacher, run_fraction=run_fraction).backward()
    slope = (_oracle(student, teacher, a + 1e-5) - _oracle(student, teacher, a - 1e-5)) / 2e-5
    w = (1 - math.cos(math.pi * min(run_fraction / 0.5, 1))) / 2
    assert loss.a.grad.item() == pytest.approx(-w * slope, rel=1e-4, abs=1e-7)


def test_the_curriculum_is_that_of_the_authors_code():
    """w of epoch 1, 2, ... of 240 is (1 - cos(pi epoch / 10)) / 2, and 1 from epoch 10 on."""
    grads = []
    for epoch in (1, 5, 10, 11, 240):
        loss = _build()
        call(loss, sample(4), sample(4, seed=1), run_fraction=epoch / 240).backward()
        grads.append(loss.a.grad.item())
    expected = [(1 - math.cos(math.pi * min(epoch / 10, 1))) / 2 for epoch in (1, 5, 10, 11, 240)]
    assert [grad / grads[-1] for grad in grads] == pytest.approx(expected, rel=1e-5)


def test_trains_the_student_only_and_resumes():
    assert all(grad.any() for grad in assert_trains_the_student_only(_build(), 4))
    assert_finite_for_equal_models(ctkd.build)
    assert_resumes_from_its_state(_build, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.0}, r"start: must be finite and more than 0, not 0\.0"),
        ({"range": -1.0}, r"range: must be finite and 0 or more, not -1\.0"),
        ({"rise": 1.5}, r"rise: must be from 0 to 1, not 1\.5"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"{message}; set it in loss.options"):
        _build(**options)
