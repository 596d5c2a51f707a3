"""Labels of strong views equal slow loops in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdflow import config
from kdflow.methods.labels import interpolated, mixed, teacher
from kdflow.methods.views import StrongBatch

LABELS = {"interpolated": interpolated, "mixed": mixed, "teacher": teacher}


def test_every_label_is_tested():
    assert sorted(LABELS) == config.choices("labels")


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum())


def _kl(teacher: np.ndarray, student: np.ndarray, tau: float) -> float:
    p, q = _log_softmax(teacher / tau), _log_softmax(student / tau)
    return sum(np.exp(p[c]) * (p[c] - q[c]) for c in range(len(p)))


def _case(seed: int, batch: int = 4, views: int = 6, classes: int = 5):
    generator = torch.Generator().manual_seed(seed)
    strong = StrongBatch(
        images=torch.zeros(views, 3, 2, 2),
        index_a=torch.randint(batch, (views,), generator=generator),
        index_b=torch.randint(batch, (views,), generator=generator),
        lam=torch.rand(views, generator=generator),
        teacher_logits=4 * torch.randn(views, classes, generator=generator),
    )
    labels = torch.randint(classes, (batch,), generator=generator)
    student = torch.randn(views, classes, generator=generator)
    return strong, labels, 4 * torch.randn(batch, classes, generator=generator), student


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(LABELS)), st.integers(0, 10**6), st.floats(0.5, 8))
def test_losses_equal_slow_loops(name, seed, tau):
    strong, labels, teacher_logits_x, student = _case(seed)
    total = 0.0
    for k, logits in enumerate(student.double().numpy()):
        i, j, lam = strong.index_a[k].item(), strong.index_b[k].item(), strong.lam[k].double().item()
        teacher_x = teacher_logits_x.double().numpy()
        if name == "teacher":
            total += tau**2 * _kl(strong.teacher_logits[k].double().numpy(), logits, tau)
        elif name == "interpolated":
            total += tau**2 * _kl(lam * teacher_x[i] + (1 - lam) * teacher_x[j], logits, tau)
        else:
            log_p = _log_softmax(logits)
            total -= lam * log_p[labels[i]] + (1 - lam) * log_p[labels[j]]
    found = LABELS[name].loss(student, strong, labels, teacher_logits_x, tau).item()
    assert found == pytest.approx(total / len(student), rel=1e-4, abs=1e-5)


def test_a_student_that_equals_its_target_has_no_loss_and_no_gradient():
    strong, labels, teacher_logits_x, _ = _case(0)
    lam = strong.lam[:, None]
    perfect = {
        "teacher": strong.teacher_logits.clone(),
        "interpolated": lam * teacher_logits_x[strong.index_a] + (1 - lam) * teacher_logits_x[strong.index_b],
    }
    for name, logits in perfect.items():
        logits.requires_grad_()
        loss = LABELS[name].loss(logits, strong, labels, teacher_logits_x, 4.0)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == pytest.approx(0, abs=1e-5)
        assert gradient.abs().max() < 1e-5


def test_labels_of_unmixed_views_are_those_of_x():
    """The mixed label is that of the image, and the interpolated logits are those of x, if lambda is 1."""
    strong, labels, teacher_logits_x, student = _case(1)
    unmixed = StrongBatch(strong.images, strong.index_a, strong.index_b, torch.ones(6), strong.teacher_logits)
    expected = torch.nn.functional.cross_entropy(student, labels[strong.index_a])
    assert mixed.loss(student, unmixed, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    again = StrongBatch(strong.images, strong.index_a, strong.index_b, torch.ones(6), teacher_logits_x[strong.index_a])
    same = teacher.loss(student, again, labels, None, 4.0)
    assert interpolated.loss(student, unmixed, labels, teacher_logits_x, 4.0).item() == pytest.approx(
        same.item(), rel=1e-6
    )
