"""Standardised logits equal their definition, and work with each loss on logits."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import CLASSES, assert_finite_for_equal_models, assert_trains_the_student_only, call
from samples import outputs as sample

from kdflow.methods.losses import dist, dkd, standardised
from kdflow.models.features import Outputs

NONE = Outputs(torch.zeros(2, CLASSES), (), None)
LABELS = torch.arange(20) % CLASSES


def _build(**options):
    return standardised.build(NONE, NONE, LABELS, **options)


def _z(row):
    return [(value - statistics.fmean(row)) / statistics.stdev(row) for value in row]


def _softmax(logits, temperature):
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def _oracle(student, teacher, temperature=2.0):
    total = 0.0
    for s, t in zip(student.logits.tolist(), teacher.logits.tolist(), strict=True):
        p_s, p_t = _softmax(_z(s), temperature), _softmax(_z(t), temperature)
        total += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p_t, p_s, strict=True))
    return total / len(student.logits)


@pytest.mark.parametrize("options", [{}, {"of": "kl", "temperature": 0.7}])
def test_equals_a_float64_loop(options):
    student, teacher = sample(6, dtype=torch.float64), sample(6, seed=1, dtype=torch.float64)
    expected = _oracle(student, teacher, options.get("temperature", 2.0))
    assert call(_build(**options), student, teacher).item() == pytest.approx(expected, rel=1e-5)  # its eps is 1e-7
    assert call(_build(**options), sample(6), sample(6, seed=1)).item() == pytest.approx(expected, rel=1e-4)


def test_equals_a_value_worked_by_hand():
    """The deviation of two logits is |difference|/sqrt(2): (0, 1) and (5, -3) have the z-scores -+r, r = 1/sqrt(2).

    With T = 1 and p = 1/(1 + exp(2 r)) = 0.195570: KL = (1 - p) 2 r - p 2 r = 2 r (1 - 2 p) = 0.861058.
    """
    student = Outputs(torch.tensor([[0.0, 1.0]], dtype=torch.float64), (), None)
    teacher = Outputs(torch.tensor([[5.0, -3.0]], dtype=torch.float64), (), None)
    assert call(_build(temperature=1.0), student, teacher).item() == pytest.approx(0.861058, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(0.05, 50), st.floats(-20, 20))
def test_the_size_of_logits_has_no_effect(b, seed, scale, shift):
    student, teacher = sample(b, seed=seed, dtype=torch.float64), sample(b, seed=seed + 1, dtype=torch.float64)
    larger = replace(student, logits=scale * student.logits + shift)
    for options in ({}, {"of": "dkd"}, {"of": "dist"}):
        loss = _build(**options)
        assert call(loss, larger, teacher).item() == pytest.approx(call(loss, student, teacher).item(), rel=1e-4)
        assert options.get("of") == "dist" or call(loss, larger, student).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("module", [dkd, dist])
def test_another_loss_gets_the_z_scores(module):
    name, student, teacher = module.__name__.rpartition(".")[2], sample(4), sample(4, seed=1)
    z = [
        replace(model, logits=torch.tensor([_z(row) for row in model.logits.tolist()])) for model in (student, teacher)
    ]
    expected = call(module.build(NONE, NONE, LABELS, temperature=3.0), *z)
    assert call(_build(of=name, temperature=3.0), student, teacher).item() == pytest.approx(expected.item(), rel=1e-4)


def test_parameters_of_another_loss_are_trained():
    loss = _build(of="ctkd")
    call(loss, sample(4, grad=True), sample(4, seed=1)).backward()
    (parameter,) = loss.parameters()
    assert parameter.grad.isfinite()


def test_trains_the_student_only():
    assert all(grad.any() for grad in assert_trains_the_student_only(_build(), 4))
    assert_finite_for_equal_models(standardised.build)
    equal = torch.zeros(2, CLASSES, requires_grad=True)
    call(_build(), Outputs(equal, (), None), sample(2)).backward()
    assert equal.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "sp"}, "of: must be kl, ctkd, dist, dkd.*, not sp; set it in loss.options"),
        ({"of": "standardised"}, "of: must be kl, .*, not standardised; set it in loss.options"),
        ({"temperature": 0.0}, r"temperature: must be finite and more than 0, not 0\.0; set it in loss.options"),
        ({"of": "dist", "beta": -1.0}, r"beta: must be finite and 0 or more, not -1\.0; set it in loss.options"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        _build(**options)


def test_refuses_an_unknown_option():
    with pytest.raises(TypeError, match="beta"):
        _build(beta=1.0)
