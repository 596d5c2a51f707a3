"""Softmax regression representation learning equals its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    assert_finite_for_equal_models,
    assert_resumes_from_its_state,
    assert_trains_the_student_only,
    call,
    loss_inputs,
    outputs,
    teacher_outputs,
)
from slow_layers import batch_norm, convolution, mean_squared_error, relu

from kdflow.methods.losses import LossInputs, srrl
from kdflow.models.features import Outputs

LABELS = torch.arange(20) % 5


def _build(**options):
    return srrl.build(outputs(2), teacher_outputs(2), LABELS, **options)


def _oracle(loss, inputs, alpha, beta):
    linear, norm, _ = loss.connector
    student, teacher = (model.pooled.numpy()[:, :, None, None] for model in (inputs.student, inputs.teacher))
    connected = relu(batch_norm(convolution(student, linear), norm))
    logits = convolution(connected, inputs.teacher_head)[:, :, 0, 0]
    return alpha * mean_squared_error(connected, teacher) + beta * mean_squared_error(logits, inputs.teacher.logits)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (3.0, 0.0), (0.0, 2.0)])
def test_equals_a_float64_loop(alpha, beta):
    inputs = loss_inputs(outputs(4, dtype=torch.float64), teacher_outputs(4, dtype=torch.float64))
    loss = _build(alpha=alpha, beta=beta).double()
    with torch.no_grad():
        for i, parameter in enumerate(loss.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    expected = _oracle(loss, inputs, alpha, beta)
    assert loss(inputs).item() == pytest.approx(expected, rel=1e-10)
    assert call(loss.float(), outputs(4), teacher_outputs(4)).item() == pytest.approx(expected, rel=1e-4)


def test_values_of_two_images():
    """The student's features are 1 and 3. Times -2: -2 and -6; batch norm turns them to 1 and -1, ReLU to 1 and 0.

    The teacher's are 4 and 2: ((1 - 4)^2 + (0 - 2)^2) / 2 = 6.5. Its classifier 2 f - 1 gives 1 and -1 for the
    student, 7 and 3 for itself: (6^2 + 4^2) / 2 = 26.
    """
    student, teacher = (torch.tensor([[a], [b]], dtype=torch.float64) for a, b in ((1.0, 3.0), (4.0, 2.0)))
    head = torch.nn.Linear(1, 1).double()
    loss = srrl.build(Outputs(student, (), student), Outputs(teacher, (), teacher), LABELS, alpha=1.0, beta=10.0)
    with torch.no_grad():
        head.weight.fill_(2)
        head.bias.fill_(-1)
        loss.double().connector[0].weight.fill_(-2)
    loss.connector[1].eps = 1e-15
    models = Outputs(student, (), student), Outputs(head(teacher), (), teacher)
    inputs = LossInputs(*models, torch.zeros(2).long(), torch.arange(2), 1.0, None, head)
    assert loss(inputs).item() == pytest.approx(6.5 + 10 * 26, rel=1e-12)


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 6), st.integers(0, 10**6), st.floats(0, 10), st.floats(0, 10))
def test_is_the_weighted_sum_of_two_terms_that_are_not_negative(b, seed, alpha, beta):
    student, teacher = (model(b, seed=seed, dtype=torch.float64) for model in (outputs, teacher_outputs))
    terms = []
    for options in ({"alpha": 1.0, "beta": 0.0}, {"alpha": 0.0, "beta": 1.0}, {"alpha": alpha, "beta": beta}):
        torch.manual_seed(seed)
        terms.append(call(_build(**options).double(), student, teacher).item())
    feature, regression, both = terms
    assert feature > 0
    assert regression > 0
    assert both == pytest.approx(alpha * feature + beta * regression, rel=1e-9)


def test_trains_the_connector_and_the_student_only():
    student, teacher = outputs(4), teacher_outputs(4)
    inputs = loss_inputs(student, teacher)
    inputs.teacher_head.requires_grad_(False)
    _build()(inputs).backward()
    assert all(grad.any() for grad in assert_trains_the_student_only(_build(), 4))


def test_gradients_are_finite_for_equal_models():
    assert_finite_for_equal_models(srrl.build)


def test_resumes_from_its_state():
    assert_resumes_from_its_state(_build, 3)


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_refuses_weights_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"{name}: must be finite and 0 or more, not .* loss.options"):
        _build(**{name: value})
