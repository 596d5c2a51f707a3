"""The epoch plan: all randomness from (seed, epoch), and from nothing else."""

import pytest
import torch

from kdflow.config import BaseView, Pick, StrongView
from kdflow.training.epoch_plan import EpochPlan, draw_plan

CPU = torch.device("cpu")
CUTMIX, PICK = StrongView(view="cutmix"), StrongView(view="cutmix", pick=Pick(criterion="kl"))
FLIPPED = BaseView(crop=4, flip=True, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
UNFLIPPED = FLIPPED.model_copy(update={"flip": False})


def _plan(
    seed: int = 0,
    epoch: int = 0,
    strong: StrongView | None = None,
    images: int = 100,
    batch_size: int = 32,
    base_view: BaseView = FLIPPED,
) -> EpochPlan:
    return draw_plan(seed, epoch, images, batch_size, 32, base_view, strong, CPU)


@pytest.mark.parametrize("strong", [CUTMIX, PICK])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**32 - 1, 239)])
def test_the_base_views_are_the_same_whatever_the_method(seed, epoch, strong):
    plain, other = _plan(seed, epoch), _plan(seed, epoch, strong)
    for field in ("order", "shift", "flip"):
        assert torch.equal(getattr(plain, field), getattr(other, field))
    assert plain.strong == []


def test_the_draw_of_tlcutmix_is_the_first_of_pick_and_the_second_is_another():
    mixed, picked = _plan(strong=CUTMIX), _plan(strong=PICK)
    assert len(mixed.strong) == 1
    assert len(picked.strong) == 2
    for key, value in mixed.strong[0].items():
        assert torch.equal(value, picked.strong[0][key])
        assert not torch.equal(value, picked.strong[1][key])


def test_the_plan_is_the_same_again_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = _plan(strong=PICK)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = _plan(strong=PICK)
    assert torch.equal(first.order, second.order)
    assert torch.equal(first.shift, second.shift)
    assert torch.equal(first.flip, second.flip)
    for a, b in zip(first.strong, second.strong, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1), (11, 0), (0, 10)])
def test_another_seed_or_epoch_is_another_plan(seed, epoch):
    first, other = _plan(strong=CUTMIX), _plan(seed, epoch, strong=CUTMIX)
    for field in ("order", "shift", "flip"):
        assert not torch.equal(getattr(first, field), getattr(other, field))
    for key, value in first.strong[0].items():
        assert not torch.equal(value, other.strong[0][key])


def test_seed_and_epoch_are_not_run_together():
    assert not torch.equal(_plan(1, 11).order, _plan(11, 1).order)
    assert not torch.equal(_plan(1, 11).order, _plan(111, 0).order)


@pytest.mark.parametrize(("images", "batch_size"), [(100, 32), (96, 32), (97, 32), (5, 32), (1, 1)])
def test_rows_visit_every_image_once_and_the_short_last_batch_is_kept(images, batch_size):
    plan = _plan(strong=PICK, images=images, batch_size=batch_size)
    rows = list(plan)
    sizes = [len(row.index) for row in rows]
    assert sizes == [batch_size] * (images // batch_size) + ([images % batch_size] if images % batch_size else [])
    assert sorted(index for row in rows for index in row.index.tolist()) == list(range(images))
    at = 0
    for step, row in enumerate(rows):
        size = len(row.index)
        assert row.index.tolist() == plan.order.tolist()[at : at + size]
        assert row.shift.tolist() == plan.shift.tolist()[at : at + size]
        assert row.flip.tolist() == plan.flip.tolist()[at : at + size]
        for k in range(2):
            assert row.strong[k]["box"].tolist() == plan.strong[k]["box"][step].tolist()
            assert sorted(row.strong[k]["partner"].tolist()[:size]) == list(range(size))
        at += size


@pytest.mark.parametrize("crop", [0, 1, 4])
def test_shifts_take_every_value_from_0_to_twice_crop(crop):
    plan = _plan(images=2000, base_view=FLIPPED.model_copy(update={"crop": crop}))
    assert plan.shift.shape == (2000, 2)
    for axis in range(2):
        counts = torch.bincount(plan.shift[:, axis])
        assert len(counts) == 2 * crop + 1
        assert counts.min() > 0.7 * 2000 / (2 * crop + 1)
    assert crop == 0 or not torch.equal(plan.shift[:, 0], plan.shift[:, 1])


def test_half_is_flipped_or_nothing():
    assert _plan(images=10_000).flip.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert not _plan(images=10_000, base_view=UNFLIPPED).flip.any()


def test_order_crop_and_flip_are_independent_draws():
    plan = _plan(images=10_000)
    columns = torch.stack([plan.order.double(), *plan.shift.T.double(), plan.flip.double()])
    assert (torch.corrcoef(columns) - torch.eye(4)).abs().max() < 0.05


def test_golden_sample():
    """The streams as they are: if these numbers change, so does every result."""
    plan = _plan(strong=PICK)
    assert plan.order[:8].tolist() == [29, 55, 58, 44, 82, 88, 18, 96]
    assert plan.shift[:4].tolist() == [[8, 8], [6, 4], [5, 0], [2, 1]]
    assert plan.flip[:12].int().tolist() == [0, 1, 1, 1, 1, 0, 0, 1, 0, 1, 1, 0]
    assert plan.strong[0]["box"].tolist() == [[7, 32, 0, 15], [15, 32, 15, 32], [0, 16, 0, 17], [1, 27, 0, 17]]
    assert plan.strong[0]["partner"][0, :8].tolist() == [2, 14, 5, 24, 18, 26, 16, 6]
    assert plan.strong[1]["box"].tolist() == [[0, 13, 0, 20], [14, 30, 2, 18], [4, 32, 13, 32], [18, 32, 3, 23]]
    assert plan.strong[1]["partner"][3].tolist() == [
        2,
        3,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ]
