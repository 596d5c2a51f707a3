"""Similarity-preserving distillation equals its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import assert_trains_the_student_only, call, outputs, teacher_outputs

from kdflow.methods.losses import sp
from kdflow.models.features import Outputs

LABELS = torch.arange(20) % 5


def _rows(maps):
    flat = [image.flatten().tolist() for image in maps]
    products = [[sum(x * y for x, y in zip(one, other, strict=True)) for other in flat] for one in flat]
    return [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in products]


def _oracle(student, teacher):
    g_student, g_teacher = _rows(student.maps[-1]), _rows(teacher.maps[-1])
    b = len(g_student)
    return sum((g_student[i][j] - g_teacher[i][j]) ** 2 for i in range(b) for j in range(b)) / b**2


@pytest.mark.parametrize("sizes", [(8, 4, 2), (5, 3, 3)])
def test_equals_a_float64_loop_over_the_last_maps_of_any_size(sizes):
    student, teacher = outputs(5, dtype=torch.float64), teacher_outputs(5, sizes=sizes, dtype=torch.float64)
    loss = sp.build(student, teacher, LABELS)
    assert call(loss, student, teacher).item() == pytest.approx(_oracle(student, teacher), rel=1e-10)
    student, teacher = outputs(5), teacher_outputs(5, sizes=sizes)
    assert call(loss, student, teacher).item() == pytest.approx(_oracle(student, teacher), rel=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 6), st.integers(0, 10**6), st.floats(0.01, 100))
def test_zero_for_equal_maps_and_invariant_to_scale_and_order_of_features(b, seed, scale):
    student = outputs(b, seed=seed)
    similar = Outputs(student.logits, (scale * student.maps[-1].flip(1),), None)
    assert call(sp.SimilarityPreserving(), student, student) == 0
    assert call(sp.SimilarityPreserving(), student, similar) < 1e-10
    assert call(sp.SimilarityPreserving(), student, outputs(b, seed=seed + 1)) > 0


def test_a_batch_of_one_has_a_loss_of_0():
    assert call(sp.SimilarityPreserving(), outputs(1), teacher_outputs(1)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("b", [1, 4])
def test_trains_the_student_only(b):
    grads = assert_trains_the_student_only(sp.SimilarityPreserving(), b)
    assert b == 1 or all(grad.any() for grad in grads)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_refuses_a_model_without_maps(role):
    some, none = outputs(2), outputs(2, (), ())
    pair = (none, some) if role == "student" else (some, none)
    with pytest.raises(ValueError, match=f"the {role} has none; .* in recipes/models.yaml"):
        sp.build(*pair, LABELS)
