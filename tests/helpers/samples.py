"""Outputs of made-up models, and what every loss must keep to."""

import copy

import torch

from kdflow.models.features import Outputs

CLASSES = 5


def outputs(b, channels=(3, 4, 6), sizes=(8, 4, 2), width=6, seed=0, dtype=torch.float32, grad=False):
    """Random ones; maps are channels_last, as in training."""
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


def ask(loss, student, teacher, seed=0, index=None):
    index = torch.arange(len(student.logits)) if index is None else index
    return loss(student, teacher, index, torch.Generator().manual_seed(seed))


def leaves(said):
    return [said.logits, *said.maps, *([] if said.pooled is None else [said.pooled])]


def assert_trains_the_student_only(loss, b):
    """Finite loss and gradients, some of them not zero, and none for a teacher even if it asks for them."""
    student, teacher = outputs(b, grad=True), teacher_outputs(b, grad=True)
    found = ask(loss, student, teacher)
    assert found.shape == ()
    assert found.isfinite()
    found.backward()
    assert [leaf.grad for leaf in leaves(teacher)] == [None] * len(leaves(teacher))
    grads = [leaf.grad for leaf in leaves(student) if leaf.grad is not None]
    own = [parameter.grad for parameter in loss.parameters()]
    assert grads
    assert all(grad is not None and grad.isfinite().all() for grad in grads + own)
    return grads + own


def assert_goes_on_from_its_state(build, b):
    """A step, saved and restored into a loss of other random weights: the next steps are the same to the bit."""

    def step(loss, i):
        student, teacher = outputs(b, seed=i, grad=True), teacher_outputs(b, seed=100 + i)
        found = ask(loss, student, teacher, seed=i)
        loss.zero_grad()
        found.backward()
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.sub_(0.1 * parameter.grad)
        return found

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
