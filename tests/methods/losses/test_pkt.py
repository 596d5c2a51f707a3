"""Probabilistic knowledge transfer equals its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import assert_trains_the_student_only, call, outputs, teacher_outputs

from kdflow.methods.losses import pkt
from kdflow.models.features import Outputs

LABELS = torch.arange(20) % 5


def _cosine(one, other):
    product = sum(x * y for x, y in zip(one, other, strict=True))
    return product / math.sqrt(sum(x * x for x in one)) / math.sqrt(sum(y * y for y in other))


def _rows(pooled):
    kernel = [[(_cosine(one, other) + 1) / 2 for other in pooled.tolist()] for one in pooled.tolist()]
    return [[value / sum(row) for value in row] for row in kernel]


def _oracle(student, teacher):
    p_student, p_teacher, eps = _rows(student.pooled), _rows(teacher.pooled), 1e-7
    pairs = [(p, q) for rows in zip(p_teacher, p_student, strict=True) for p, q in zip(*rows, strict=True)]
    return sum(p * math.log((p + eps) / (q + eps)) for p, q in pairs) / len(pairs)


@pytest.mark.parametrize("b", [2, 7])
def test_equals_a_float64_loop(b):
    student, teacher = outputs(b, dtype=torch.float64), teacher_outputs(b, dtype=torch.float64)
    loss = pkt.build(student, teacher, LABELS)
    assert call(loss, student, teacher).item() == pytest.approx(_oracle(student, teacher), rel=1e-9)
    student, teacher = outputs(b), teacher_outputs(b)
    assert call(loss, student, teacher).item() == pytest.approx(_oracle(student, teacher), rel=1e-3)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 8), st.integers(0, 10**6), st.floats(0.01, 100))
def test_zero_for_equal_features_never_negative_and_invariant_to_scale(b, seed, scale):
    student, teacher = (outputs(b, seed=s, dtype=torch.float64) for s in (seed, seed + 1))
    scaled = Outputs(student.logits, student.maps, scale * student.pooled)
    loss = pkt.ProbabilisticTransfer()
    assert call(loss, student, student) == 0
    assert abs(call(loss, student, scaled)) < 1e-14
    assert call(loss, student, teacher) > -1e-6 / b
    assert call(loss, scaled, teacher).item() == pytest.approx(call(loss, student, teacher).item(), rel=1e-9)


@pytest.mark.parametrize("b", [1, 4])
def test_trains_the_student_only(b):
    grads = assert_trains_the_student_only(pkt.ProbabilisticTransfer(), b)
    assert grads[0].any() == (b > 1)
    assert b > 1 or call(pkt.ProbabilisticTransfer(), outputs(1), teacher_outputs(1)) == 0


@pytest.mark.parametrize("pooled", [torch.zeros(3, 6), torch.eye(1, 6) * torch.tensor([[1.0], [-1.0], [1.0]])])
def test_zero_and_opposite_features_give_finite_gradients(pooled):
    pooled.requires_grad_()
    student = outputs(3)
    for pair in ((Outputs(student.logits, (), pooled), student), (student, Outputs(student.logits, (), pooled))):
        value = call(pkt.ProbabilisticTransfer(), *pair)
        assert value.isfinite()
        if value.requires_grad:
            value.backward()
            assert pooled.grad.isfinite().all()
