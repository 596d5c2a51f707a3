"""Random outputs of models, and checks that all losses share."""

import copy

import torch

from kdflow.methods.losses import LossInputs
from kdflow.models.features import Outputs

CLASSES = 5


def outputs(b, channels=(3, 4, 6), sizes=(8, 4, 2), width=6, seed=0, dtype=torch.float32, grad=False):
    """Return random outputs of a student; feature maps are channels_last, as in training."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    maps = [random(b, c, h, h).to(memory_format=torch.channels_last) for c, h in zip(channels, sizes, strict=True)]
    pooled = None if width is None else random(b, width)
    tensors = [random(b, CLASSES), *maps, *([] if pooled is None else [pooled])]
    for tensor in tensors:
        tensor.requires_grad_(grad)
    return Outputs(tensors[0], tuple(maps), pooled)


def teacher_outputs(b, seed=100, **options):
    return outputs(b, **{"channels": (5, 7, 8), "width": 9, "seed": seed} | options)


def loss_inputs(student, teacher, draws=None, index=None, labels=None, run_fraction=1.0):
    index = torch.arange(len(student.logits)) if index is None else index
    labels = index % CLASSES if labels is None else labels
    return LossInputs(student, teacher, labels, index, run_fraction, draws, teacher_head(teacher))


def teacher_head(teacher):
    """Return a classifier for the pooled feature, with fixed weights."""
    if teacher.pooled is None:
        return None
    head = torch.nn.Linear(teacher.pooled.shape[1], CLASSES, dtype=teacher.pooled.dtype).requires_grad_(False)
    for i, parameter in enumerate(head.parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return head


def call(loss, student, teacher, seed=0, *options, **named):
    draw = getattr(loss, "draw", None)
    draws = None if draw is None else draw(len(student.logits), torch.Generator().manual_seed(seed))
    return loss(loss_inputs(student, teacher, draws, *options, **named))


def leaves(model_outputs):
    pooled = model_outputs.pooled
    return [model_outputs.logits, *model_outputs.maps, *([] if pooled is None else [pooled])]


def assert_trains_the_student_only(loss, b):
    """Check that loss and gradients are finite, and that the teacher gets none even if it requires them."""
    student, teacher = outputs(b, grad=True), teacher_outputs(b, grad=True)
    value = call(loss, student, teacher)
    assert value.shape == ()
    assert value.isfinite()
    value.backward()
    assert [leaf.grad for leaf in leaves(teacher)] == [None] * len(leaves(teacher))
    student_grads = [leaf.grad for leaf in leaves(student) if leaf.grad is not None]
    loss_grads = [parameter.grad for parameter in loss.parameters()]
    assert student_grads
    assert all(grad is not None and grad.isfinite().all() for grad in student_grads + loss_grads)
    return student_grads + loss_grads


def assert_finite_for_equal_models(build, b=4):
    """Check that loss and gradients are finite where the student's outputs are the teacher's."""
    student, teacher = outputs(b, grad=True), outputs(b)
    loss = build(outputs(2), outputs(2), torch.arange(20) % CLASSES)
    value = call(loss, student, teacher)
    value.backward()
    grads = [leaf.grad for leaf in leaves(student) if leaf.grad is not None]
    assert grads
    assert all(tensor.isfinite().all() for tensor in (value, *grads, *(p.grad for p in loss.parameters())))


def assert_resumes_from_its_state(build, b):
    """Save a loss after two steps and restore it into one with other weights: the next steps are equal to the bit."""

    def step(loss, i):
        student, teacher = outputs(b, seed=i, grad=True), teacher_outputs(b, seed=100 + i)
        value = call(loss, student, teacher, seed=i)
        loss.zero_grad()
        value.backward()
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.sub_(0.1 * parameter.grad)
        return value

    loss = build()
    first, second = step(loss, 0), step(loss, 1)
    state = copy.deepcopy(loss.state_dict())
    torch.rand(3)
    other = build()
    other.load_state_dict(state)
    assert torch.equal(step(loss, 2), step(other, 2))
    assert torch.equal(step(loss, 3), step(other, 3))
    assert all(torch.equal(a, b) for a, b in zip(loss.state_dict().values(), other.state_dict().values(), strict=True))
    return first, second
