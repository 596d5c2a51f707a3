"""Relational knowledge distillation equals its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    assert_finite_for_equal_models,
    assert_trains_the_student_only,
    call,
    outputs,
    teacher_outputs,
)

from kdflow.methods.losses import rkd
from kdflow.models.features import Outputs

LABELS = torch.arange(20) % 5


def _build(**options):
    return rkd.build(outputs(2), teacher_outputs(2), LABELS, **options)


def _with_pooled(rows):
    pooled = torch.as_tensor(rows, dtype=torch.float64)
    return Outputs(torch.zeros(len(pooled), 5), (), pooled)


def _huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def _cosine(i, j, k):
    to_i, to_k = ([a - b for a, b in zip(p, j, strict=True)] for p in (i, k))
    lengths = math.hypot(*to_i) * math.hypot(*to_k)
    return sum(a * b for a, b in zip(to_i, to_k, strict=True)) / lengths if lengths else 0.0


def _oracle(student, teacher, distance=25.0, angle=50.0):
    s, t = student.pooled.tolist(), teacher.pooled.tolist()
    n = range(len(s))
    mu_s, mu_t = (sum(math.dist(p[i], p[j]) for i in n for j in n) / (len(s) * (len(s) - 1)) for p in (s, t))
    pairs = [_huber(math.dist(s[i], s[j]) / mu_s - math.dist(t[i], t[j]) / mu_t) for i in n for j in n]
    triplets = [_huber(_cosine(s[i], s[j], s[k]) - _cosine(t[i], t[j], t[k])) for i in n for j in n for k in n]
    return distance * sum(pairs) / len(pairs) + angle * sum(triplets) / len(triplets)


@pytest.mark.parametrize("options", [{}, {"distance": 3.0, "angle": 0.0}, {"distance": 0.0, "angle": 2.0}])
def test_equals_a_float64_loop_over_pairs_and_triplets(options):
    student, teacher = outputs(6, dtype=torch.float64), teacher_outputs(6, dtype=torch.float64)
    expected = _oracle(student, teacher, **options)
    assert call(_build(**options), student, teacher).item() == pytest.approx(expected, rel=1e-10)
    assert call(_build(**options), outputs(6), teacher_outputs(6)).item() == pytest.approx(expected, rel=1e-4)


def test_values_of_two_triangles():
    """Sides 5, 8, 5 (mean 6) for the student and 3, 4, 5 (mean 4) for the teacher.

    Distances: 5/6 - 3/4 = 1/12, 8/6 - 1 = 1/3, 5/6 - 5/4 = -5/12, each in two of nine pairs:
    2/9 (1/288 + 1/18 + 25/288) = 7/216. Cosines at the three corners: 0.8, -0.28, 0.8 and 0, 0.6, 0.8, each in two
    of 27 triplets: 2/27 (0.8^2 + 0.88^2) / 2 = 1.4144/27.
    """
    student, teacher = _with_pooled([[0, 0], [3, 4], [0, 8]]), _with_pooled([[0, 0], [3, 0], [0, 4]])
    assert call(_build(distance=1.0, angle=0.0), student, teacher).item() == pytest.approx(7 / 216, rel=1e-12)
    assert call(_build(distance=0.0, angle=1.0), student, teacher).item() == pytest.approx(1.4144 / 27, rel=1e-12)
    assert call(_build(), student, teacher).item() == pytest.approx(25 * 7 / 216 + 50 * 1.4144 / 27, rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 6), st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-10, 10))
def test_zero_for_a_scaled_rotated_and_shifted_embedding(b, seed, scale, shift):
    student = outputs(b, seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    moved = Outputs(student.logits, student.maps, scale * student.pooled @ rotation + shift)
    assert call(_build(), student, student) == 0
    assert call(_build(), student, moved) < 1e-10
    assert call(_build(), student, outputs(b, seed=seed + 1, dtype=torch.float64)) > 0


def test_a_batch_of_one_has_a_loss_of_0():
    assert call(_build(), outputs(1), teacher_outputs(1)) == 0


def test_trains_the_student_only():
    assert all(grad.any() for grad in assert_trains_the_student_only(_build(), 4))
    assert_trains_the_student_only(_build(), 1)


def test_gradients_are_finite_for_equal_models_and_equal_images():
    assert_finite_for_equal_models(rkd.build)
    for rows in ([[1.0, 2.0]] * 3, [[0.0, 0.0]] * 3, [[1.0, 2.0], [1.0, 2.0], [3.0, 1.0]]):
        student = _with_pooled(rows)
        student.pooled.requires_grad_()
        call(_build(), student, teacher_outputs(3, dtype=torch.float64)).backward()
        assert student.pooled.grad.isfinite().all()
        assert student.pooled.grad.abs().max() < 1e3


@pytest.mark.parametrize("name", ["distance", "angle"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_refuses_weights_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"{name}: must be finite and 0 or more, not .* loss.options"):
        _build(**{name: value})
