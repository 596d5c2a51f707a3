"""Neuron selectivity transfer equals its definition."""

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
from torch.nn import functional as F

from kdflow.methods.losses import nst
from kdflow.models.features import Outputs

LABELS = torch.arange(20) % 5


def _directions(image):
    rows = [channel.flatten().tolist() for channel in image]
    return [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows]


def _kernel(xs, ys):
    values = [sum(a * b for a, b in zip(x, y, strict=True)) ** 2 for x in xs for y in ys]
    return sum(values) / len(values)


def _oracle(student, teacher):
    total = 0.0
    for maps in zip(student.maps[1:], teacher.maps[1:], strict=True):
        images = [tuple(_directions(image) for image in pair) for pair in zip(*maps, strict=True)]
        total += sum(_kernel(s, s) + _kernel(t, t) - 2 * _kernel(s, t) for s, t in images) / len(images)
    return total


def test_equals_a_float64_loop_over_all_maps_but_the_first():
    student, teacher = outputs(4, dtype=torch.float64), teacher_outputs(4, dtype=torch.float64)
    loss = nst.build(student, teacher, LABELS)
    assert call(loss, student, teacher).item() == pytest.approx(_oracle(student, teacher), rel=1e-10)
    assert call(loss, outputs(4), teacher_outputs(4)).item() == pytest.approx(_oracle(student, teacher), rel=1e-4)


def test_values_of_two_channels():
    """Directions of the student's channels: (1, 0) and (0, 1); of the teacher's only one: (0.6, 0.8).

    k among the student's: 1, 0, 0, 1, mean 1/2; the teacher's: 1; between them: 0.36 and 0.64, mean 1/2. So
    1/2 + 1 - 2/2 = 1/2.
    """
    student = torch.tensor([[[[7.0, 0.0]], [[0.0, 2.0]]]], dtype=torch.float64)
    teacher = torch.tensor([[[[3.0, 4.0]]]], dtype=torch.float64)
    assert nst.discrepancy(student, teacher).item() == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("sizes", [(8, 8, 4), (8, 2, 1), (8, 5, 3)])
def test_the_larger_map_is_average_pooled(sizes):
    student, teacher = outputs(3), teacher_outputs(3, sizes=sizes)

    def pooled_to(model, other):
        sizes = [min(m.shape[2], o.shape[2]) for m, o in zip(model.maps, other.maps, strict=True)]
        maps = tuple(F.adaptive_avg_pool2d(m, size) for m, size in zip(model.maps, sizes, strict=True))
        return Outputs(model.logits, maps, model.pooled)

    loss = nst.build(student, teacher, LABELS)
    expected = call(loss, pooled_to(student, teacher), pooled_to(teacher, student))
    assert call(loss, student, teacher).item() == pytest.approx(expected.item(), rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(0, 10**6), st.floats(0.01, 100))
def test_zero_for_the_same_channels_in_any_order_and_scale(b, seed, scale):
    student = outputs(b, seed=seed, dtype=torch.float64)
    similar = Outputs(student.logits, tuple(scale * m.flip(1) for m in student.maps), student.pooled)
    loss = nst.NeuronSelectivity()
    assert call(loss, student, similar).abs() < 1e-12
    other = call(loss, student, teacher_outputs(b, seed=seed, dtype=torch.float64))
    assert 0 < other <= 4  # a discrepancy is at most 2 in each of two layers


@pytest.mark.parametrize("b", [1, 4])
def test_trains_the_student_only(b):
    assert all(grad.any() for grad in assert_trains_the_student_only(nst.NeuronSelectivity(), b))


def test_gradients_are_finite_for_equal_models_and_dead_channels():
    assert_finite_for_equal_models(nst.build)
    student = outputs(2, grad=True)
    dead = Outputs(student.logits, tuple((0 * m.detach()).requires_grad_() for m in student.maps), None)
    call(nst.NeuronSelectivity(), dead, teacher_outputs(2)).backward()
    assert all(m.grad.isfinite().all() for m in dead.maps[1:])


def test_refuses_maps_that_cannot_be_paired():
    with pytest.raises(ValueError, match="the student has 3 feature layers, the teacher 2: nst compares"):
        nst.build(outputs(2), outputs(2, (3, 4), (4, 2)), LABELS)
