"""Variational information distillation equals its definition. It is not zero where student equals teacher."""

import math

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
from torch.nn import functional as F

from kdflow.methods.losses import vid
from kdflow.models.features import Outputs

LABELS = torch.arange(20) % 5


def _build(student=None, teacher=None, **options):
    return vid.build(student or outputs(2), teacher or teacher_outputs(2), LABELS, **options)


def _layer(regressor, student, teacher):
    """Compute one layer by a loop over positions: three matrices with ReLU between."""
    matrices = [m.weight.double()[:, :, 0, 0] for m in regressor.mean if isinstance(m, torch.nn.Conv2d)]
    b, c, h, w = teacher.shape
    terms = []
    for i in range(b):
        for y in range(h):
            for x in range(w):
                v = student[i, :, y, x].double()
                for k, matrix in enumerate(matrices):
                    v = matrix @ (v.clamp(min=0) if k else v)
                for k in range(c):
                    variance = math.log1p(math.exp(regressor.raw_variance[k].item())) + 1e-5
                    error = (v[k] - teacher[i, k, y, x]).item()
                    terms.append(0.5 * (error**2 / variance + math.log(variance)))
    return sum(terms) / len(terms)


def test_equals_a_float64_loop_over_all_maps_but_the_first():
    student, teacher, loss = outputs(3), teacher_outputs(3), _build()
    with torch.no_grad():
        for i, parameter in enumerate(loss.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    layers = zip(loss.regressors, student.maps[1:], teacher.maps[1:], strict=True)
    expected = sum(_layer(*layer) for layer in layers)
    assert call(loss, student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sizes", [(8, 8, 4), (8, 2, 1), (8, 5, 3)])
def test_the_larger_map_is_average_pooled(sizes):
    student, teacher = outputs(3), teacher_outputs(3, sizes=sizes)
    loss = _build(student, teacher)

    def pooled_to(model, other):
        sizes = [min(m.shape[2], o.shape[2]) for m, o in zip(model.maps, other.maps, strict=True)]
        maps = tuple(F.adaptive_avg_pool2d(m, size) for m, size in zip(model.maps, sizes, strict=True))
        return Outputs(model.logits, maps, model.pooled)

    expected = call(loss, pooled_to(student, teacher), pooled_to(teacher, student))
    assert call(loss, student, teacher).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("variance", [0.01, 1.0, 5.0])
def test_variance_is_the_initial_variance(variance):
    for regressor in _build(variance=variance).regressors:
        initial = F.softplus(regressor.raw_variance) + 1e-5
        assert initial.flatten().tolist() == pytest.approx([variance] * len(initial), rel=1e-4)
    assert all(
        torch.equal(a.raw_variance, b.raw_variance)
        for a, b in zip(_build().regressors, _build(variance=5.0).regressors, strict=True)
    )


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(0, 10**6), st.floats(0.1, 20))
def test_the_minimum_is_that_of_a_perfect_prediction(b, seed, variance):
    loss = _build(variance=variance)
    floor = 2 * 0.5 * math.log(variance)
    assert call(loss, outputs(b, seed=seed), teacher_outputs(b, seed=seed)) >= floor - 1e-4
    with torch.no_grad():
        for regressor in loss.regressors:
            regressor.mean[-1].weight.zero_()
    zero = Outputs(torch.zeros(b, 5), tuple(0 * m for m in teacher_outputs(b).maps), None)
    assert call(loss, outputs(b, seed=seed), zero).item() == pytest.approx(floor, abs=1e-4)


@pytest.mark.parametrize("b", [1, 4])
def test_trains_the_regressors_and_the_student_only(b):
    assert all(grad.any() for grad in assert_trains_the_student_only(_build(), b))


def test_resumes_from_its_state():
    assert_resumes_from_its_state(_build, 3)


def test_refuses_unsupported_pairs_and_options():
    with pytest.raises(ValueError, match="the student has 3 feature layers, the teacher 2: vid compares"):
        _build(teacher=outputs(2, (3, 4), (4, 2)))
    with pytest.raises(ValueError, match=r"the student has 0 feature layers, the teacher 0: vid .* two or more"):
        _build(outputs(2, (), ()), outputs(2, (), ()))
    for variance in (0.0, -1.0, 1e-5, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"variance: must be finite and more than 1e-05, .* loss.options"):
            _build(variance=variance)
