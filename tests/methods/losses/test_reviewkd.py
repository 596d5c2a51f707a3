"""Knowledge review equals its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    assert_finite_for_equal_models,
    assert_resumes_from_its_state,
    assert_trains_the_student_only,
    call,
    outputs,
    teacher_outputs,
)
from slow_layers import average_pool, batch_norm, convolution, mean_squared_error, nearest

from kdflow.methods.losses import reviewkd

LABELS = torch.arange(20) % 5


def _build(student=None, teacher=None, **options):
    return reviewkd.build(student or outputs(2), teacher or teacher_outputs(2), LABELS, **options)


def _context_loss(student, teacher):
    sizes = [size for size in (4, 2, 1) if size < student.shape[2]]
    errors = [mean_squared_error(student, teacher)]
    errors += [mean_squared_error(average_pool(student, size), average_pool(teacher, size)) for size in sizes]
    return sum(error / 2**i for i, error in enumerate(errors)) / sum(1 / 2**i for i in range(len(errors)))


def _oracle(loss, student, teacher):
    levels = [
        [model.pooled.numpy()[:, :, None, None], *(m.numpy() for m in reversed(model.maps[1:]))]
        for model in (student, teacher)
    ]
    total, deeper = 0.0, None
    for fusion, s, t in zip(loss.fusions, *levels, strict=True):
        fused = batch_norm(convolution(s, fusion.reduce[0]), fusion.reduce[1])
        if deeper is not None:
            deeper = nearest(deeper, fused.shape[2:])
            scores = convolution(np.concatenate([fused, deeper], axis=1), fusion.attention)
            weight = np.vectorize(lambda score: 1 / (1 + math.exp(-score)))(scores)
            fused = weight[:, :1] * fused + weight[:, 1:] * deeper
        deeper = nearest(fused, t.shape[2:])
        total += _context_loss(batch_norm(convolution(deeper, fusion.predict[0]), fusion.predict[1]), t)
    return total


@pytest.mark.parametrize("sizes", [(8, 4, 2), (16, 8, 4), (4, 2, 1)])
def test_equals_a_float64_loop_over_all_levels(sizes):
    student = outputs(2, dtype=torch.float64)
    teacher = teacher_outputs(2, channels=(2, 3, 4), sizes=sizes, dtype=torch.float64)
    loss = _build(student, teacher).double()
    with torch.no_grad():
        for i, parameter in enumerate(loss.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    assert call(loss, student, teacher).item() == pytest.approx(_oracle(loss, student, teacher), rel=1e-10)


def test_values_of_the_context_loss():
    """The maps differ by 4 in one of 2x2 pixels: 16 / 4 = 4, and by 1 in their means: 1. (4 + 1/2) / (1 + 1/2) = 3.

    For 1x1 maps it is the squared error alone: 4^2 = 16.
    """
    student, teacher = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    teacher[0, 0, 1, 0] = 4.0
    assert reviewkd.context_loss(student, teacher).item() == pytest.approx(3, rel=1e-6)
    assert reviewkd.context_loss(student[..., :1, :1], teacher[..., 1:, :1]).item() == pytest.approx(16, rel=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.floats(-5, 5))
def test_the_context_loss_of_a_constant_difference_is_its_square(h, w, seed, difference):
    maps = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert reviewkd.context_loss(maps, maps) == 0
    found = reviewkd.context_loss(maps + difference, maps).item()
    assert found == pytest.approx(difference**2, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("fraction", "warmup", "weight"), [(0.5, 0.5, 1), (0.25, 0.5, 0.5), (1.0, 0.5, 1), (0.1, 0.0, 1)]
)
def test_warmup_grows_with_the_epoch(fraction, warmup, weight):
    loss = _build(warmup=warmup)
    full = call(loss, outputs(3), teacher_outputs(3), run_fraction=1.0).item()
    found = call(loss, outputs(3), teacher_outputs(3), run_fraction=fraction).item()
    assert found == pytest.approx(weight * full, rel=1e-5)


def test_width_is_at_most_that_of_the_pooled_feature():
    assert [fusion.reduce[0].out_channels for fusion in _build().fusions] == [6, 6, 6]
    assert [fusion.reduce[0].out_channels for fusion in _build(width=3).fusions] == [3, 3, 3]


def test_trains_the_fusions_and_the_student_only():
    assert all(grad.any() for grad in assert_trains_the_student_only(_build(), 4))


def test_gradients_are_finite_for_equal_models():
    assert_finite_for_equal_models(reviewkd.build)


def test_resumes_from_its_state():
    assert_resumes_from_its_state(_build, 3)


def test_refuses_unsupported_pairs_and_options():
    with pytest.raises(ValueError, match="the student has 3 feature layers, the teacher 2: reviewkd compares"):
        _build(teacher=outputs(2, (3, 4), (4, 2)))
    with pytest.raises(ValueError, match=r"width: must be 1 or more, not 0; set it in loss\.options"):
        _build(width=0)
    for warmup in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"warmup: must be from 0 to 1, a fraction of the run, not .*"):
            _build(warmup=warmup)
