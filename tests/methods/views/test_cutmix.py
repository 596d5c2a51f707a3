"""CutMix: boxes, partners and the pasting of one into the other."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdflow.methods.views import cutmix


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _slow(x: np.ndarray, box: list[int], partner: list[int]) -> np.ndarray:
    top, bottom, left, right = box
    out = x.copy()
    for i in range(len(x)):
        for row in range(top, bottom):
            for column in range(left, right):
                out[i, :, row, column] = x[partner[i], :, row, column]
    return out


@settings(deadline=None)
@given(st.data())
def test_apply_equals_a_slow_loop(data):
    n, height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    rows = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    columns = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    partner = data.draw(st.permutations(range(n)))
    x = torch.randn(n, 3, height, width, generator=_generator(data.draw(st.integers(0, 99))))
    before = x.clone()
    draw = {
        "box": torch.tensor([*rows, *columns]),
        "partner": torch.tensor([*partner, 0, 0]),
    }  # padding of a longer row
    found = cutmix.apply(x, draw)
    assert np.array_equal(found.images.numpy(), _slow(x.numpy(), [*rows, *columns], list(partner)))
    assert torch.equal(x, before)
    assert found.index_a.tolist() == list(range(n))
    assert found.index_b.tolist() == list(partner)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_the_label_weight_is_the_area_that_is_left(seed, size):
    """Lambda is the fraction of the pixels of a uniform image that keep its colour."""
    draws = cutmix.draw([3], size, _generator(seed))
    x = torch.arange(3.0)[:, None, None, None].expand(3, 3, size, size)
    found = cutmix.apply(x, {key: value[0] for key, value in draws.items()})
    for i in range(3):
        assert found.lam[i].item() == pytest.approx((found.images[i] == i).float().mean().item(), abs=1e-6)


def test_drawn_boxes_applied_equal_a_slow_loop():
    draws = cutmix.draw([6, 6, 4], 8, _generator())
    for step, size in enumerate((6, 6, 4)):
        x = torch.randn(size, 3, 8, 8, generator=_generator(step)).contiguous(memory_format=torch.channels_last)
        row = {key: value[step] for key, value in draws.items()}
        expected = _slow(x.numpy(), row["box"].tolist(), row["partner"].tolist())
        found = cutmix.apply(x, row).images
        assert np.array_equal(found.numpy(), expected)
        assert found.is_contiguous(memory_format=torch.channels_last)


# --- boxes -------------------------------------------------------------------------------------------------


def test_box_is_the_square_of_lambda_around_its_centre_clipped_at_the_border():
    """The test draws lambda and centre from the same generator and computes the box from them."""
    steps, size = 500, 32
    boxes = cutmix.draw([2] * steps, size, _generator(5))["box"].tolist()
    stream = _generator(5)
    lambdas = torch.rand(steps, generator=stream).tolist()
    centres = torch.randint(size, (steps, 2), generator=stream).tolist()
    clipped = 0
    for box, lam, centre in zip(boxes, lambdas, centres, strict=True):
        half = int(size * (1 - lam) ** 0.5) // 2  # as in CutMix's published code
        expected = []
        for middle in centre:
            expected += [max(middle - half, 0), min(middle + half, size)]
        assert box == expected
        clipped += (box[1] - box[0], box[3] - box[2]) != (2 * half, 2 * half)
    assert 0 < clipped < steps


@pytest.mark.parametrize("size", [1, 2, 8, 32, 33])
def test_boxes_lie_within_the_image(size):
    box = cutmix.draw([2] * 500, size, _generator(size))["box"]
    top, bottom, left, right = box.T
    assert box.shape == (500, 4)
    assert (box >= 0).all()
    assert (box <= size).all()
    assert (top <= bottom).all()
    assert (left <= right).all()


def test_the_area_of_unclipped_boxes_is_one_minus_a_uniform_lambda():
    """A box of side s stays unclipped with probability (1 - s)^2: weighed by its inverse, areas are uniform."""
    size, steps = 1000, 40_000
    draws = cutmix.draw([1] * steps, size, _generator(1))
    share: Counter[int] = Counter()
    for top, bottom, left, right in draws["box"].tolist():
        if top > 0 and left > 0 and bottom < size and right < size:
            side = (bottom - top) / size
            assert right - left == bottom - top
            share[int(side**2 * 10)] += 1 / (1 - side) ** 2 / steps  # type: ignore[assignment]
    for tenth in range(4):  # larger boxes are rarely unclipped
        assert share[tenth] == pytest.approx(0.1, abs=0.015)


def test_centres_are_uniform():
    size, steps = 4, 8000
    draws = cutmix.draw([1] * steps, 1000, _generator(2))
    quarter = Counter()
    for top, bottom, left, right in draws["box"].tolist():
        if 0 < bottom - top < 100 and top > 0 and left > 0 and bottom < 1000 and right < 1000:
            quarter[(top + bottom) * size // 2000, (left + right) * size // 2000] += 1
    total = sum(quarter.values())
    assert total > 50
    assert all(count < total / 4 for count in quarter.values())
    assert len(quarter) > 12


# --- partners ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(2, 71))
def test_derangement_is_a_permutation_without_a_fixed_point(n):
    for seed in range(5):
        partner = cutmix.derangement(n, _generator(seed)).tolist()
        assert sorted(partner) == list(range(n))
        assert all(i != other for i, other in enumerate(partner))


def test_derangement_of_one_and_of_two():
    for seed in range(20):
        assert cutmix.derangement(1, _generator(seed)).tolist() == [0]
        assert cutmix.derangement(2, _generator(seed)).tolist() == [1, 0]


def test_derangements_of_four_are_equally_frequent():
    all_nine = [p for p in permutations(range(4)) if all(i != j for i, j in enumerate(p))]
    assert len(all_nine) == 9
    generator = _generator(3)
    seen = Counter(tuple(cutmix.derangement(4, generator).tolist()) for _ in range(3600))
    assert set(seen) == set(all_nine)
    chi_square = sum((seen[p] - 400) ** 2 / 400 for p in all_nine)
    assert chi_square < 26.1  # the 99.9 % quantile of 8 degrees of freedom


def test_partners_of_a_short_last_batch_are_within_it():
    for seed in range(20):
        partner = cutmix.draw([8, 8, 3], 8, _generator(seed))["partner"]
        assert partner.shape == (3, 8)
        for row, size in zip(partner.tolist(), (8, 8, 3), strict=True):
            assert sorted(row[:size]) == list(range(size))
            assert all(i != other for i, other in enumerate(row[:size]))


def test_a_last_batch_of_one_is_unchanged():
    draws = cutmix.draw([4, 1], 8, _generator())
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(cutmix.apply(x, {key: value[1] for key, value in draws.items()}).images, x)


def test_draws_depend_on_the_generator_alone():
    torch.manual_seed(1)
    first = cutmix.draw([4, 4, 2], 16, _generator(7))
    torch.manual_seed(2)
    second = cutmix.draw([4, 4, 2], 16, _generator(7))
    other = cutmix.draw([4, 4, 2], 16, _generator(8))
    for key, value in first.items():
        assert torch.equal(value, second[key])
        assert not torch.equal(value, other[key])
