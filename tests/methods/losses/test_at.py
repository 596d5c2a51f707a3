"""Attention transfer equals its definition."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import assert_trains_the_student_only, call, outputs, teacher_outputs

from kdflow.methods.losses import at
from kdflow.models.features import Outputs

LABELS = torch.arange(20) % 5


def _attention(image):
    """Return the mean of squares over channels of nested lists [c][h][w], flattened, divided by its L2 norm."""
    c, h, w = len(image), len(image[0]), len(image[0][0])
    energy = [sum(image[k][y][x] ** 2 for k in range(c)) / c for y in range(h) for x in range(w)]
    length = math.sqrt(sum(value**2 for value in energy))
    return [value / length for value in energy]


def _oracle(student, teacher):
    total = 0.0
    for maps in zip(student.maps[1:], teacher.maps[1:], strict=True):
        squares = []
        for s, t in zip(*(m.tolist() for m in maps), strict=True):
            squares += [(a - b) ** 2 for a, b in zip(_attention(s), _attention(t), strict=True)]
        total += sum(squares) / len(squares)
    return total


def test_equals_a_float64_loop_over_all_maps_but_the_first():
    student, teacher = outputs(4, dtype=torch.float64), teacher_outputs(4, dtype=torch.float64)
    loss = at.build(student, teacher, LABELS)
    assert call(loss, student, teacher).item() == pytest.approx(_oracle(student, teacher), rel=1e-10)
    student, teacher = outputs(4), teacher_outputs(4)
    assert call(loss, student, teacher).item() == pytest.approx(_oracle(student, teacher), rel=1e-4)


def _mean_of_blocks(maps, k):
    b, c, h, w = maps.shape
    return maps.reshape(b, c, h // k, k, w // k, k).mean((3, 5))


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_average_pooled(larger):
    student, teacher = outputs(3, dtype=torch.float64), teacher_outputs(3, sizes=(9, 8, 6), dtype=torch.float64)
    small = Outputs(
        teacher.logits, tuple(_mean_of_blocks(m, k) for m, k in zip(teacher.maps, (1, 2, 3), strict=True)), None
    )
    pair, expected = (student, teacher), _oracle(student, small)
    found = call(at.AttentionTransfer(), *(pair if larger == "teacher" else reversed(pair)))
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_sizes_need_not_be_multiples():
    student, teacher = outputs(3, sizes=(8, 7, 3)), teacher_outputs(3, sizes=(8, 5, 4))
    assert call(at.AttentionTransfer(), student, teacher) > 0


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(0.01, 100))
def test_zero_for_equal_maps_and_invariant_to_scale(b, seed, scale):
    student = outputs(b, seed=seed)
    scaled = Outputs(student.logits, tuple(scale * m for m in student.maps), student.pooled)
    assert call(at.AttentionTransfer(), student, student) == 0
    assert call(at.AttentionTransfer(), student, scaled) < 1e-12
    assert call(at.AttentionTransfer(), student, outputs(b, seed=seed + 1)) > 0


@pytest.mark.parametrize("b", [1, 4])
def test_trains_the_student_only(b):
    grads = assert_trains_the_student_only(at.AttentionTransfer(), b)
    assert all(grad.any() for grad in grads)


def test_maps_of_zeros_give_finite_gradients():
    student = outputs(2, grad=True)
    dead = Outputs(student.logits, tuple((0 * m.detach()).requires_grad_() for m in student.maps), None)
    call(at.AttentionTransfer(), dead, teacher_outputs(2)).backward()
    assert all(m.grad.isfinite().all() for m in dead.maps[1:])


def test_refuses_maps_that_cannot_be_paired():
    five, six = outputs(2, (3,) * 5, (4,) * 5), outputs(2, (3,) * 6, (4,) * 6)
    expected = (
        "the student has 5 feature layers, the teacher 6: at compares them one by one; "
        "list as many features for both in recipes/models.yaml"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        at.build(five, six, LABELS)
    for n in (0, 1):
        few = outputs(2, (3,) * n, (4,) * n)
        with pytest.raises(ValueError, match=f"has {n} feature layers?, the teacher {n}: at .* two or more"):
            at.build(few, few, LABELS)
