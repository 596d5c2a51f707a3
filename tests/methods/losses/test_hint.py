"""FitNets' hint equals its definition."""

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
from slow_layers import batch_norm, convolution, mean_squared_error, relu
from torch.nn import functional as F

from kdflow.methods.losses import hint
from kdflow.models.features import Outputs

LABELS = torch.arange(20) % 5


def _build(student=None, teacher=None, **options):
    return hint.build(student or outputs(2), teacher or teacher_outputs(2), LABELS, **options)


def _oracle(loss, student, teacher):
    convolution_layer, norm, _ = loss.regressor
    prediction = relu(batch_norm(convolution(student.numpy(), convolution_layer), norm))
    return mean_squared_error(prediction, teacher)


@pytest.mark.parametrize("layer", [0, 2])
def test_equals_a_float64_loop_over_the_maps_of_its_layer(layer):
    student, teacher = outputs(3, dtype=torch.float64), teacher_outputs(3, dtype=torch.float64)
    loss = _build(layer=layer).double()
    with torch.no_grad():
        for i, parameter in enumerate(loss.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    expected = _oracle(loss, student.maps[layer], teacher.maps[layer])
    assert call(loss, student, teacher).item() == pytest.approx(expected, rel=1e-10)
    assert call(loss.float(), outputs(3), teacher_outputs(3)).item() == pytest.approx(expected, rel=1e-4)


def test_values_of_two_pixels():
    """The student's map is (1, 3): mean 2, variance 1. Times -2, less 1: (-3, -7), which batch norm turns to (1, -1).

    ReLU leaves (1, 0). The teacher's map is (4, 2): ((1 - 4)^2 + (0 - 2)^2) / 2 = 6.5.
    """
    logits = torch.zeros(1, 5, dtype=torch.float64)
    student, teacher = (
        Outputs(logits, (torch.tensor([[[row]]], dtype=torch.float64),), None) for row in ([1.0, 3.0], [4.0, 2.0])
    )
    loss = _build(student, teacher, layer=0).double()
    with torch.no_grad():
        loss.regressor[0].weight.fill_(-2)
        loss.regressor[0].bias.fill_(-1)
    loss.regressor[1].eps = 1e-15
    assert call(loss, student, teacher).item() == pytest.approx(6.5, rel=1e-12)


@pytest.mark.parametrize("sizes", [(8, 8, 4), (8, 2, 1), (8, 5, 3)])
def test_the_larger_map_is_average_pooled(sizes):
    student, teacher = outputs(3), teacher_outputs(3, sizes=sizes)
    loss = _build(student, teacher)
    size = min(student.maps[2].shape[2], teacher.maps[2].shape[2])
    small = [
        Outputs(model.logits, (*model.maps[:2], F.adaptive_avg_pool2d(model.maps[2], size)), None)
        for model in (student, teacher)
    ]
    assert call(loss, student, teacher).item() == pytest.approx(call(loss, *small).item(), rel=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 5), st.integers(0, 10**6), st.floats(0.5, 20), st.floats(-5, 5))
def test_scale_and_shift_of_the_student_do_not_matter(b, seed, scale, shift):
    student, teacher = (model(b, seed=seed, dtype=torch.float64) for model in (outputs, teacher_outputs))
    moved = Outputs(student.logits, tuple(scale * m + shift for m in student.maps), student.pooled)
    loss = _build().double()
    loss.regressor[1].eps = 1e-15
    value = call(loss, student, teacher)
    assert value > 0
    assert call(loss, moved, teacher).item() == pytest.approx(value.item(), rel=1e-6)


def test_trains_the_regressor_and_the_student_only():
    grads = assert_trains_the_student_only(_build(), 4)
    assert sum(bool(grad.any()) for grad in grads) >= 4  # batch norm removes the gradient of the bias before it


def test_gradients_are_finite_for_equal_models():
    assert_finite_for_equal_models(hint.build)


def test_resumes_from_its_state():
    assert_resumes_from_its_state(_build, 3)


@pytest.mark.parametrize("layer", [3, -1, True])
def test_refuses_a_layer_that_is_not_there(layer):
    with pytest.raises(ValueError, match=rf"layer: must be a position, .* 3 features .*, not {layer}; .* loss.options"):
        _build(layer=layer)
    with pytest.raises(ValueError, match=r"list of the teacher's 2 features"):
        _build(teacher=outputs(2, (3, 4), (4, 2)))
