"""Properties of all strong views; identity, cutout and mixup; and pools of several draws."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdflow import config
from kdflow.methods.views import StrongBatch, concat_draws, cutmix, cutout, identity, mixup

VIEWS = {"cutmix": cutmix, "cutout": cutout, "identity": identity, "mixup": mixup}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _x(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=_generator(seed)).contiguous(memory_format=torch.channels_last)


def _row(view, sizes: list[int], size: int, seed: int, step: int = 0) -> dict[str, torch.Tensor]:
    return {key: value[step] for key, value in view.draw(sizes, size, _generator(seed)).items()}


def test_every_view_is_tested():
    assert sorted(VIEWS) == config.choices("views")


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(VIEWS)), st.integers(1, 9), st.integers(4, 33), st.integers(0, 999))
def test_properties_of_every_view(name, n, size, seed):
    """Shape and layout are kept, x is not changed, lambda is within 0 and 1, partners are within the batch."""
    view, x = VIEWS[name], _x(n, size)
    before = x.clone()
    found = view.apply(x, _row(view, [12, n], size, seed, step=1))  # a short last batch
    assert torch.equal(x, before)
    assert found.images.shape == x.shape
    assert found.images.is_contiguous(memory_format=torch.channels_last)
    assert found.index_a.tolist() == list(range(n))
    assert all(0 <= partner < n for partner in found.index_b.tolist())
    assert ((found.lam >= 0) & (found.lam <= 1)).all()
    assert found.lam.dtype == found.images.dtype
    if not view.MIXES_IMAGES:
        assert found.lam.tolist() == [1.0] * n
    assert found.teacher_logits is None


def test_identity_is_x():
    x = _x(4, 8)
    assert torch.equal(identity.apply(x, {}).images, x)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_mixup_is_the_weighted_mean_with_its_partner(seed):
    x, row = _x(5, 4, seed), _row(mixup, [5], 4, seed)
    found = mixup.apply(x, row)
    lam, partner = row["lam"].double().item(), row["partner"].tolist()
    assert sorted(partner) == list(range(5))
    for i in range(5):
        expected = lam * x[i].double() + (1 - lam) * x[partner[i]].double()
        torch.testing.assert_close(found.images[i].double(), expected, rtol=1e-5, atol=1e-5)
    assert found.lam.tolist() == pytest.approx([lam] * 5)


def test_mixup_draws_uniform_lambdas_and_permutations():
    draws = mixup.draw([3] * 6000, 8, _generator(1))
    tenths = Counter((draws["lam"] * 10).long().tolist())
    assert set(tenths) == set(range(10))
    assert all(abs(count - 600) < 100 for count in tenths.values())  # 4 standard deviations
    orders = Counter(map(tuple, draws["partner"].tolist()))
    assert len(orders) == 6  # fixed points are allowed
    assert sum((count - 1000) ** 2 / 1000 for count in orders.values()) < 20.5  # 99.9 % of 5 degrees of freedom


@pytest.mark.parametrize(("size", "side"), [(32, 8), (64, 16), (224, 56), (16, 4)])
def test_cutout_removes_one_square_with_a_quarter_of_the_sides(size, side):
    draws = cutout.draw([2] * 60, size, _generator(size))
    unclipped = 0
    for corner in draws["corner"]:
        x = torch.ones(2, 3, size, size)
        hole = cutout.apply(x, {"corner": corner}).images == 0
        assert torch.equal(hole[0], hole[1])
        assert torch.equal(hole[0, 0], hole[0, 2])
        row, column = corner.tolist()
        expected = torch.zeros(size, size, dtype=torch.bool)
        for i in range(max(row, 0), min(row + side, size)):
            for j in range(max(column, 0), min(column + side, size)):
                expected[i, j] = True
        assert torch.equal(hole[0, 0], expected)
        assert -side // 2 <= row < size - side // 2
        unclipped += int(hole[0, 0].sum() == side**2)
    assert unclipped > 20


def test_the_pool_has_all_draws_one_after_the_other():
    x = _x(3, 8)
    draws = [cutmix.apply(x, _row(cutmix, [3], 8, seed)) for seed in (1, 2)]
    pool = concat_draws(draws)
    assert torch.equal(pool.images, torch.cat([draw.images for draw in draws]))
    assert pool.index_a.tolist() == [0, 1, 2, 0, 1, 2]
    assert pool.index_b.tolist() == draws[0].index_b.tolist() + draws[1].index_b.tolist()
    assert pool.lam.tolist() == draws[0].lam.tolist() + draws[1].lam.tolist()
    assert pool.images.is_contiguous(memory_format=torch.channels_last)
    assert concat_draws(draws[:1]) is draws[0]


def test_take_selects_rows_of_all_fields():
    x = _x(4, 8)
    strong = cutmix.apply(x, _row(cutmix, [4], 8, 3))
    strong = StrongBatch(
        strong.images, strong.index_a, strong.index_b, torch.arange(4.0), torch.arange(8.0).reshape(4, 2)
    )
    taken = strong.take(torch.tensor([3, 1]))
    assert torch.equal(taken.images, strong.images[[3, 1]])
    assert taken.index_a.tolist() == [3, 1]
    assert taken.index_b.tolist() == strong.index_b[[3, 1]].tolist()
    assert taken.lam.tolist() == [3.0, 1.0]
    assert taken.teacher_logits.tolist() == [[6.0, 7.0], [2.0, 3.0]]
