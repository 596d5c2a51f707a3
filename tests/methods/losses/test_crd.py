"""Contrastive representation distillation equals its definition. It is not zero where student equals teacher."""

import copy
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import assert_resumes_from_its_state, assert_trains_the_student_only, call, outputs, teacher_outputs
from torch.utils._python_dispatch import TorchDispatchMode

from kdflow.methods.losses import crd

LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1, 0, 3, 1, 1, 2, 0, 3, 2, 1, 0, 2, 1])  # 5, 7, 6 and 2 images


def _build(labels=LABELS, **options):
    return crd.build(outputs(2), teacher_outputs(2), labels, **{"negatives": 9, "dim": 8} | options)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the loss ----------------------------------------------------------------------------------------------


def _embed(linear, pooled):
    v = pooled.double() @ linear.weight.double().T + linear.bias.double()
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in v.tolist()]


def _side(v, bank, rows, negatives, z, temperature):
    """Compute the loss of one side by a loop over images, as in the paper; Z is that of this batch if it is None."""
    n, m = len(bank), len(negatives[0])
    power = [
        [
            math.exp(sum(a * b for a, b in zip(v[i], bank[j], strict=True)) / temperature)
            for j in (rows[i], *negatives[i])
        ]
        for i in range(len(v))
    ]
    if z is None:
        z = sum(map(sum, power)) / (len(v) * (m + 1)) * n
    total = 0.0
    for positive, *negative in power:
        total -= math.log(positive / z / (positive / z + m / n + 1e-7))
        total -= sum(math.log((m / n) / (o / z + m / n + 1e-7)) for o in negative)
    return total / len(v), z


def _updated(bank, rows, v, momentum):
    bank = [list(entry) for entry in bank]
    for row, new in zip(rows, v, strict=True):
        entry = [momentum * a + (1 - momentum) * b for a, b in zip(bank[row], new, strict=True)]
        bank[row] = [x / math.sqrt(sum(y * y for y in entry)) for x in entry]
    return bank


@pytest.mark.parametrize("replacement", [False, True])
def test_three_steps_equal_a_float64_loop(replacement):
    loss = _build(replacement=replacement, temperature=0.2, momentum=0.3).double()
    banks = [loss.bank_teacher.tolist(), loss.bank_student.tolist()]  # of the student's side, of the teacher's side
    z = [None, None]
    for step in range(3):
        index = torch.arange(4) * 3 + step
        student = outputs(4, seed=step, dtype=torch.float64)
        teacher = teacher_outputs(4, seed=50 + step, dtype=torch.float64)
        rows = loss.sampler.bank_row[index].tolist()
        negatives = loss.sampler(index, _generator(step)).tolist()
        v = [_embed(loss.embed_student, student.pooled), _embed(loss.embed_teacher, teacher.pooled)]
        sides = [_side(v[i], banks[i], rows, negatives, z[i], 0.2) for i in range(2)]
        z = [side_z for _, side_z in sides]
        assert call(loss, student, teacher, step, index).item() == pytest.approx(sum(s for s, _ in sides), rel=1e-8)
        banks = [_updated(banks[i], rows, v[1 - i], 0.3) for i in range(2)]
        for i, bank in enumerate((loss.bank_teacher, loss.bank_student)):
            assert torch.allclose(bank, torch.tensor(banks[i], dtype=torch.float64), atol=1e-10)
        assert [loss.log_z_student.exp().item(), loss.log_z_teacher.exp().item()] == pytest.approx(z, rel=1e-9)


def test_z_is_kept_from_the_first_batch():
    loss = _build()
    assert loss.log_z_student.isinf()
    call(loss, outputs(4), teacher_outputs(4))
    first = loss.log_z_student.clone(), loss.log_z_teacher.clone()
    assert all(z.isfinite() for z in first)
    call(loss, outputs(4, seed=8), teacher_outputs(4, seed=9))
    assert torch.equal(loss.log_z_student, first[0])
    assert torch.equal(loss.log_z_teacher, first[1])


@pytest.mark.parametrize("b", [1, 4])
def test_trains_both_embeddings_and_the_student_only(b):
    loss = _build()
    assert all(grad.any() for grad in assert_trains_the_student_only(loss, b))
    assert not any(buffer.requires_grad for buffer in loss.buffers())


def test_gradients_are_those_before_the_update_of_the_banks():
    loss, teacher = _build().double(), teacher_outputs(4, dtype=torch.float64)
    call(loss, outputs(4, dtype=torch.float64), teacher)  # fixes Z
    student = outputs(4, seed=5, dtype=torch.float64, grad=True)
    state = copy.deepcopy(loss.state_dict())
    call(loss, student, teacher).backward()
    for i in range(3):
        around = []
        for step in (1e-5, -1e-5):
            loss.load_state_dict(state)
            moved = outputs(4, seed=5, dtype=torch.float64)
            moved.pooled[i, i] += step
            around.append(call(loss, moved, teacher).item())
        assert student.pooled.grad[i, i].item() == pytest.approx((around[0] - around[1]) / 2e-5, rel=1e-4, abs=1e-7)


def test_resumes_from_its_state():
    assert_resumes_from_its_state(_build, 4)
    assert {"bank_student", "bank_teacher", "log_z_student", "log_z_teacher"} < set(_build().state_dict())


def test_a_step_depends_on_its_generator():
    loss = _build()
    state = copy.deepcopy(loss.state_dict())
    found = []
    for seed, noise in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(noise)
        loss.load_state_dict(state)
        found.append(call(loss, outputs(4), teacher_outputs(4), seed))
    assert torch.equal(found[0], found[1])
    assert found[0] != found[2]


def test_extreme_temperatures_give_finite_gradients():
    for temperature in (1e-4, 1e4):
        loss = _build(temperature=temperature)
        for _ in range(2):
            assert_trains_the_student_only(loss, 4)


def test_training_reduces_the_loss():
    loss, student, teacher = _build(), outputs(20), teacher_outputs(20)
    found = []
    for step in range(60):
        found.append(call(loss, student, teacher, seed=step))
        grads = torch.autograd.grad(found[-1], list(loss.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(loss.parameters(), grads, strict=True):
                parameter.sub_(0.05 * grad)
    assert found[-1] < 0.8 * found[0]


def test_banks_are_initialised_as_published_and_differ_between_seeds():
    torch.manual_seed(3)
    loss, again = _build(torch.arange(3000) % 10, dim=12), _build(torch.arange(3000) % 10, dim=12)
    assert loss.bank_student.shape == loss.bank_teacher.shape == (3000, 12)
    for bank in (loss.bank_student, loss.bank_teacher):
        assert 0.49 < bank.abs().max() <= 0.5  # 1 / sqrt(12 / 3)
        assert bank.mean().abs() < 0.01
    assert not torch.equal(loss.bank_student, loss.bank_teacher)
    assert not torch.equal(loss.bank_student, again.bank_student)


def test_chunks_of_a_batch_give_the_same_products(monkeypatch):
    v, bank = torch.randn(7, 4, generator=_generator()), torch.randn(20, 4, generator=_generator(1))
    rows = torch.randint(20, (7, 5), generator=_generator(2))
    expected = torch.stack([bank[rows[i]] @ v[i] for i in range(7)])
    for limit in (2**24, 60, 1):
        monkeypatch.setattr(crd, "MAX_SIMILARITIES", limit)
        assert torch.allclose(crd.gathered_products(v, bank, rows), expected, atol=1e-6)


# --- the negatives -----------------------------------------------------------------------------------------


def _images(sampler, rows):
    return sampler.bank_row.argsort()[rows]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=40).filter(lambda labels: len(set(labels)) > 1), st.data())
def test_negatives_are_of_other_classes_and_none_is_drawn_twice(labels, data):
    labels = torch.tensor(labels)
    most = len(labels) - int(labels.bincount().max())
    count = data.draw(st.integers(1, most))
    index = torch.randperm(len(labels), generator=_generator())[: data.draw(st.integers(1, len(labels)))]
    sampler = crd.NegativeSampler(labels, count, replacement=False)
    rows = sampler(index, _generator(data.draw(st.integers(0, 10**6))))
    assert rows.shape == (len(index), count)
    assert (labels[_images(sampler, rows)] != labels[index, None]).all()
    assert all(len(set(row)) == count for row in rows.tolist())


def test_with_replacement_there_may_be_more_negatives_than_images():
    sampler = crd.NegativeSampler(LABELS, 100, replacement=True)
    rows = sampler(torch.arange(20), _generator())
    assert rows.shape == (20, 100)
    assert (LABELS[_images(sampler, rows)] != LABELS[:, None]).all()


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("labels", [LABELS, torch.arange(20) % 4])
def test_each_image_of_another_class_is_equally_likely(labels, replacement):
    draws, count = 1500, 6
    sampler = crd.NegativeSampler(labels, count, replacement)
    generator, index = _generator(7), torch.arange(20)
    rows = torch.cat([_images(sampler, sampler(index, generator))[:, None] for _ in range(draws)], dim=1)
    for i in range(20):
        times = rows[i].flatten().bincount(minlength=20)
        eligible = labels != labels[i]
        k = int(eligible.sum())
        assert not times[~eligible].any()
        expected = draws * count / k
        # Without replacement the variance is smaller: by (k - count) / (k - 1).
        spread = 1 if replacement else (k - count) / (k - 1)
        chi_square = ((times[eligible] - expected) ** 2 / expected).sum() / spread
        assert chi_square < k - 1 + 5 * math.sqrt(2 * (k - 1))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_each_set_of_negatives_is_equally_likely_at_every_position_of_the_batch(position):
    labels = torch.tensor([0, 1, 0, 2, 2, 1, 0])  # images 1, 3, 4 and 5 are of another class than 0
    sampler = crd.NegativeSampler(labels, 2, replacement=False)
    index, generator = torch.tensor([0, 3, 5]).roll(position), _generator(position)
    images = [_images(sampler, sampler(index, generator)[position]).tolist() for _ in range(1200)]
    found = Counter(frozenset(drawn) for drawn in images)
    assert set(found) == {frozenset(pair) for pair in ((1, 3), (1, 4), (1, 5), (3, 4), (3, 5), (4, 5))}
    assert sum((times - 200) ** 2 / 200 for times in found.values()) < 25  # 5 degrees of freedom: p < 0.0002


def test_dependent_negatives_give_no_larger_variance_than_independent_ones():
    n, b, m, draws = 200, 20, 60, 400
    sampler = crd.NegativeSampler(torch.arange(n) % 10, m, replacement=False)
    generator, index = _generator(), torch.arange(0, n, 10)  # all of class 0: 180 candidates for each
    gradients = torch.randn(b, n, generator=generator) + 0.5 * torch.randn(n, generator=generator)
    found = [gradients.gather(1, sampler(index, generator)).sum(1).mean() for _ in range(draws)]
    candidates = gradients[:, ~torch.isin(torch.arange(n), sampler.bank_row[index])]
    independent = (m * (1 - m / 180) * candidates.var(1)).sum() / b**2
    assert torch.stack(found).var() < 1.05 * independent


def test_images_of_a_batch_have_different_negatives():
    sampler = crd.NegativeSampler(torch.arange(1000) % 10, 100, replacement=False)
    rows = sampler(torch.arange(0, 100, 10), _generator()).tolist()  # all of class 0
    assert len({frozenset(row) for row in rows}) == 10
    assert len(set().union(*rows)) > 500


# --- memory ------------------------------------------------------------------------------------------------


class _Largest(TorchDispatchMode):
    """Size of the largest tensor that any operation returns, in bytes."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, list | tuple) else [found]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return found


def test_no_tensor_is_larger_than_a_bank():
    """The authors' code has two tensors [b, negatives, dim]: 20 MB in this test, where a bank has 1 MB."""
    n, b, m, dim = 4000, 16, 1000, 64
    loss = _build(torch.arange(n) % 100, negatives=m, dim=dim)
    with _Largest() as largest:
        call(loss, outputs(b, grad=True), teacher_outputs(b)).backward()
    assert 4 * n * dim <= largest.bytes < 1.2 * 4 * n * dim < 4 * b * m * dim


# --- refused options ---------------------------------------------------------------------------------------


def test_refuses_more_negatives_than_there_are():
    labels = torch.cat([torch.zeros(30), torch.arange(1, 10).repeat_interleave(30)]).long()
    expected = (
        "negatives: must be 270 or less, the number of images outside the largest class, not 16384; "
        "set it in loss.options"
    )
    with pytest.raises(ValueError, match=f"^{expected}$"):
        crd.build(outputs(2), teacher_outputs(2), labels)
    assert _build(labels, negatives=270).sampler(torch.arange(5), _generator()).shape == (5, 270)
    with pytest.raises(ValueError, match="not 271"):
        _build(labels, negatives=271)
    _build(labels, negatives=271, replacement=True)


@pytest.mark.parametrize("replacement", [False, True])
def test_refuses_a_single_class(replacement):
    with pytest.raises(ValueError, match="the training set has only one"):
        _build(torch.full((5,), 3), negatives=1, replacement=replacement)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim: must be 1 or more, not 0"),
        ({"negatives": -3}, "negatives: must be 1 or more, not -3"),
        ({"temperature": 0.0}, r"temperature: must be finite and more than 0, not 0\.0"),
        ({"temperature": math.nan}, "temperature: must be finite and more than 0, not nan"),
        ({"momentum": 1.0}, r"momentum: must be 0 or more and less than 1, not 1\.0"),
        ({"momentum": -0.1}, "momentum: must be 0 or more"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"{message}.*set it in loss.options"):
        _build(**options)
