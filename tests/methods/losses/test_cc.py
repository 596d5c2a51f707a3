"""Correlation congruence equals its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    assert_resumes_from_its_state,
    assert_trains_the_student_only,
    call,
    outputs,
    teacher_outputs,
)

from kdflow.methods.losses import cc

LABELS = torch.arange(20) % 5


def _build(dim=16, teacher=None):
    return cc.build(outputs(2), teacher or teacher_outputs(2), LABELS, dim=dim)


def _embed(linear, pooled):
    weight, bias = linear.weight.tolist(), linear.bias.tolist()
    return [
        [sum(w * x for w, x in zip(row, image, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        for image in pooled.tolist()
    ]


@pytest.mark.parametrize("b", [2, 5])
def test_equals_a_float64_loop_over_consecutive_pairs(b):
    student, teacher, loss = outputs(b), teacher_outputs(b), _build()
    embedded = _embed(loss.embed_student, student.pooled), _embed(loss.embed_teacher, teacher.pooled)
    d = [[abs(x - y) for x, y in zip(s, t, strict=True)] for s, t in zip(*embedded, strict=True)]
    expected = sum(sum(x * y for x, y in zip(d[i], d[i + 1], strict=True)) for i in range(b - 1)) / (b - 1)
    assert call(loss, student, teacher).item() == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_zero_for_equal_embeddings(b, seed):
    student, loss = outputs(b, seed=seed), _build(teacher=outputs(2))
    assert b == 1 or call(loss, student, student) > 0
    loss.embed_teacher.load_state_dict(loss.embed_student.state_dict())
    assert call(loss, student, student) == 0


def test_trains_both_embeddings_and_the_student_only():
    assert all(grad.any() for grad in assert_trains_the_student_only(_build(), 4))


def test_a_batch_of_one_has_no_pair():
    loss = _build()
    grads = assert_trains_the_student_only(loss, 1)
    assert not any(grad.any() for grad in grads)
    assert call(loss, outputs(1), teacher_outputs(1)) == 0


def test_resumes_from_its_state():
    assert_resumes_from_its_state(_build, 4)


def test_dim_is_the_width_of_the_embedding():
    assert _build(dim=3).embed_student.weight.shape == (3, 6)
    assert cc.build(outputs(2), teacher_outputs(2), LABELS).embed_teacher.weight.shape == (128, 9)
    with pytest.raises(ValueError, match=r"dim: must be 1 or more, not 0; set it in loss.options"):
        _build(dim=0)


def test_refuses_an_unknown_option():
    with pytest.raises(TypeError, match="width"):
        cc.build(outputs(2), teacher_outputs(2), LABELS, width=3)
