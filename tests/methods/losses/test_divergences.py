"""The divergence of teacher and student equals its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdflow.methods.losses import distillation_loss, kl_per_sample


def _softmax(logits: list[float], tau: float) -> list[float]:
    largest = max(logits)
    powers = [math.exp((value - largest) / tau) for value in logits]
    return [power / sum(powers) for power in powers]


def _kl(teacher: list[float], student: list[float], tau: float) -> float:
    pairs = zip(_softmax(teacher, tau), _softmax(student, tau), strict=True)
    return sum(p * (math.log(p) - math.log(q)) for p, q in pairs)


def _logits(n: int, classes: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_kl_equals_a_float64_loop(tau, classes):
    teacher, student = _logits(7, classes, 0), _logits(7, classes, 1)
    expected = [_kl(t, s, tau) for t, s in zip(teacher.tolist(), student.tolist(), strict=True)]
    assert kl_per_sample(teacher, student, tau).tolist() == pytest.approx(expected, rel=1e-10)
    assert kl_per_sample(teacher.float(), student.float(), tau).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_kl_is_of_the_student_from_the_teacher_and_not_reversed():
    teacher, student = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    assert kl_per_sample(teacher, student, 1.0).item() == pytest.approx(_kl([3, 0, 0], [0, 0, 0], 1.0), rel=1e-5)
    assert abs(_kl([3, 0, 0], [0, 0, 0], 1.0) - _kl([0, 0, 0], [3, 0, 0], 1.0)) > 0.1


def test_kl_is_zero_for_equal_logits():
    logits = _logits(5, 10, 2)
    assert kl_per_sample(logits, logits.clone(), 4.0).abs().max() == 0
    assert kl_per_sample(logits, logits + 100, 4.0).abs().max() < 1e-12


ROWS = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=2, max_size=8)


@settings(deadline=None)
@given(ROWS, st.floats(0.5, 10), st.floats(-100, 100), st.floats(-100, 100))
def test_kl_is_not_negative_and_invariant_to_constants(pairs, tau, a, b):
    teacher, student = torch.tensor(pairs, dtype=torch.float64).T[:, None]
    found = kl_per_sample(teacher, student, tau).item()
    assert found >= -1e-12
    assert kl_per_sample(teacher + a, student + b, tau).item() == pytest.approx(found, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_gradients_equal_finite_differences(tau):
    teacher, student = _logits(3, 5, 3).requires_grad_(), _logits(3, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: kl_per_sample(teacher.detach(), s, tau), (student,))
    assert torch.autograd.gradcheck(lambda t, s: distillation_loss(t, s, tau), (teacher, student))


def test_gradient_for_the_student_is_the_difference_of_the_distributions():
    teacher, student = _logits(4, 6, 5), _logits(4, 6, 6).requires_grad_()
    distillation_loss(teacher, student, 4.0).backward()
    for i in range(4):
        p, q = _softmax(teacher[i].tolist(), 4.0), _softmax(student[i].tolist(), 4.0)
        expected = [4.0 * (b - a) / 4 for a, b in zip(p, q, strict=True)]  # tau^2 / tau over 4 samples
        assert student.grad[i].tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [1e3, 1e4, 1e8, 1e30])
def test_huge_logits_give_finite_gradients(size):
    teacher = torch.tensor([[size, -size, 0.0], [0.0, size, -size], [size, size, size]])
    student = torch.tensor([[-size, size, 0.0], [0.0, size, -size], [0.0, 0.0, 0.0]], requires_grad=True)
    found = kl_per_sample(teacher, student, 4.0)
    assert found.isfinite().all()
    assert found[0].item() == pytest.approx(2 * size / 4, rel=1e-5)
    assert found[1:].abs().max() < 1e-6
    found.sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_distillation_loss_is_tau_squared_times_the_mean(tau):
    teacher, student = _logits(6, 9, 7), _logits(6, 9, 8)
    each = [_kl(t, s, tau) for t, s in zip(teacher.tolist(), student.tolist(), strict=True)]
    assert distillation_loss(teacher, student, tau).item() == pytest.approx(tau**2 * sum(each) / 6, rel=1e-10)
    assert distillation_loss(teacher, student, tau).shape == ()
