"""The correlation loss of DIST equals its definition."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import CLASSES, assert_finite_for_equal_models, assert_trains_the_student_only, call
from samples import outputs as sample

from kdflow.methods.losses import dist
from kdflow.models.features import Outputs

NONE = Outputs(torch.zeros(2, CLASSES), (), None)


def _build(**options):
    return dist.build(NONE, NONE, torch.arange(20) % CLASSES, **options)


def _logits(rows):
    return Outputs(torch.as_tensor(rows, dtype=torch.float64), (), None)


def _softmax(logits, temperature):
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def _oracle(student, teacher, beta=1.0, gamma=1.0, temperature=4.0):
    s, t = ([_softmax(row, temperature) for row in model.logits.tolist()] for model in (student, teacher))

    def missing(one, other):
        pairs = list(zip(one, other, strict=True))
        return sum(1 - statistics.correlation(a, b) for a, b in pairs) / len(pairs)

    columns = (list(zip(*rows, strict=True)) for rows in (s, t))
    return temperature**2 * (beta * missing(s, t) + gamma * missing(*columns))


@pytest.mark.parametrize("options", [{}, {"beta": 2.0, "gamma": 0.0}, {"beta": 0.0, "gamma": 3.0, "temperature": 1.0}])
def test_equals_a_float64_loop(options):
    student, teacher = sample(6, dtype=torch.float64), sample(6, seed=1, dtype=torch.float64)
    expected = _oracle(student, teacher, **options)
    assert call(_build(**options), student, teacher).item() == pytest.approx(expected, rel=1e-4)  # its eps is 1e-8
    assert call(_build(**options), sample(6), sample(6, seed=1)).item() == pytest.approx(expected, rel=1e-4)


def test_equals_values_worked_by_hand():
    """Two images of three classes, T = 1.

    p_s = (1/2, 1/4, 1/4), (1/4, 1/2, 1/4) and p_t = (1/2, 1/4, 1/4), (1/4, 1/4, 1/2). The first rows are equal, r = 1;
    the second are (-1, 2, -1)/12 and (-1, -1, 2)/12 after centring, so that r = (1 - 2 - 2)/6 = -1/2. The mean of 1 - r
    is 3/4. The first columns are (1/2, 1/4) in both, r = 1; of the others, one is constant, r = 0. The mean is 2/3.
    """
    student = _logits([[math.log(2), 0, 0], [0, math.log(2), 0]])
    teacher = _logits([[math.log(2), 0, 0], [0, 0, math.log(2)]])
    for beta, gamma, expected in ((1.0, 0.0, 3 / 4), (0.0, 1.0, 2 / 3), (2.0, 2.0, 17 / 6)):
        loss = _build(beta=beta, gamma=gamma, temperature=1.0)
        assert call(loss, student, teacher).item() == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), st.integers(0, 10**6), st.floats(0.01, 0.9))
def test_zero_for_probabilities_that_correlate_and_never_negative(b, seed, share):
    """Probabilities mixed with the uniform distribution have the same correlations."""
    student, teacher = sample(b, seed=seed, dtype=torch.float64), sample(b, seed=seed + 1, dtype=torch.float64)
    loss = _build(temperature=1.0, gamma=0.0)  # columns may be so short that eps counts
    mixed = share * student.logits.softmax(1) + (1 - share) / CLASSES
    assert call(loss, student, replace(student, logits=mixed.log())).item() == pytest.approx(0, abs=1e-4)
    assert call(loss, student, teacher).item() > 0


def test_a_batch_of_one_has_no_correlation_of_classes():
    one = sample(1, grad=True)
    value = call(_build(), one, sample(1))
    assert value.item() == pytest.approx(16)
    value.backward()
    assert one.logits.grad.isfinite().all()


def test_trains_the_student_only():
    assert all(grad.any() for grad in assert_trains_the_student_only(_build(), 4))
    assert_finite_for_equal_models(dist.build)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, r"beta: must be finite and 0 or more, not -1\.0"),
        ({"gamma": math.inf}, "gamma: must be finite and 0 or more, not inf"),
        ({"beta": 0.0, "gamma": 0.0}, "beta and gamma are both 0"),
        ({"temperature": 0.0}, r"temperature: must be finite and more than 0, not 0\.0"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"{message}.* in loss.options"):
        _build(**options)
