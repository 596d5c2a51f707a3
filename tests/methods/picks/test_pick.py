"""Pick: the fraction of the pool with the largest scores, for each criterion."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdflow.methods.losses import kl_per_sample
from kdflow.methods.picks import Pool, kl, pick_ratio, random, student_entropy, teacher_entropy, top_fraction

SCORE = st.floats(-1000, 1000, width=32)


@settings(deadline=None)
@given(st.lists(SCORE, min_size=1, max_size=40, unique=True).filter(lambda scores: len(scores) % 2 == 0))
def test_the_half_with_the_largest_scores_is_picked(scores):
    picked = top_fraction(torch.tensor(scores), 0.5).tolist()
    ranked = sorted(range(len(scores)), key=lambda i: scores[i], reverse=True)
    assert len(picked) == len(scores) // 2
    assert set(picked) == set(ranked[: len(scores) // 2])


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=2, max_size=40).filter(lambda scores: len(scores) % 2 == 0))
def test_with_ties_half_is_picked_and_none_twice(scores):
    picked = top_fraction(torch.tensor(scores), 0.5).tolist()
    assert len(picked) == len(set(picked)) == len(scores) // 2
    rest = set(range(len(scores))) - set(picked)
    assert min(scores[i] for i in picked) >= max(scores[i] for i in rest)


def test_the_larger_of_two_is_picked():
    assert top_fraction(torch.tensor([0.5, 0.1]), 0.5).tolist() == [0]
    assert top_fraction(torch.tensor([-0.5, 0.1]), 0.5).tolist() == [1]


def test_the_half_is_over_the_pool_and_not_per_image():
    # Images 0, 1, 2 in two draws each, as the pool is stacked: both draws of images 0 and 1 beat those of 2.
    first_draw, second_draw = [9.0, 5.0, 1.0], [8.0, 0.5, 0.2]
    picked = top_fraction(torch.tensor(first_draw + second_draw), 0.5).tolist()
    assert sorted(picked) == [0, 1, 3]  # image 0 twice, image 2 not at all


@pytest.mark.parametrize(
    ("n", "keep", "picked"), [(10, 0.3, 3), (100, 0.29, 29), (7, 0.5, 3), (2, 0.01, 1), (3, 1 / 3, 1), (128, 0.5, 64)]
)
def test_the_fraction_is_rounded_down_and_at_least_one_is_picked(n, keep, picked):
    assert sorted(top_fraction(torch.arange(float(n)), keep).tolist()) == list(range(n - picked, n))


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 100, width=32), min_size=2, max_size=40), st.floats(0.05, 0.95))
def test_the_ratio_is_that_of_the_means_and_at_least_one(scores, keep):
    chosen = top_fraction(torch.tensor(scores), keep)
    ratio = pick_ratio(torch.tensor(scores), chosen).item()
    mean = sum(scores[i] for i in chosen.tolist()) / len(chosen)
    assert ratio == pytest.approx(mean / (sum(scores) / len(scores)), rel=1e-4)
    assert ratio >= 1 - 1e-5


def test_the_ratio_of_scores_that_are_all_0_is_one():
    """All divergences are 0 if the student equals the teacher."""
    assert pick_ratio(torch.zeros(4), torch.tensor([0, 3])).item() == 1.0


def _pool(tau: float = 4.0) -> tuple[Pool, list[str]]:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (3 * torch.randn(12, 7, generator=generator) for _ in range(2))
    calls: list[str] = []

    def student_outputs() -> torch.Tensor:
        calls.append("student")
        return student

    return Pool(teacher, student_outputs, tau, torch.rand(12, generator=generator)), calls


def _entropy(logits: list[float]) -> float:
    total = sum(math.exp(value) for value in logits)
    return -sum(math.exp(value) / total * math.log(math.exp(value) / total) for value in logits)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_kl_score_is_the_loss_per_sample(tau):
    pool, calls = _pool(tau)
    assert torch.equal(kl.score(pool), kl_per_sample(pool.teacher_logits, pool.student_outputs(), tau))
    assert not torch.allclose(kl.score(pool), kl_per_sample(pool.student_outputs(), pool.teacher_logits, tau))
    assert "student" in calls


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_entropies_are_at_temperature_one_for_every_method(tau):
    pool, calls = _pool(tau)
    found = teacher_entropy.score(pool)
    assert calls == []
    assert found.tolist() == pytest.approx([_entropy(row) for row in pool.teacher_logits.tolist()], rel=1e-5)
    found = student_entropy.score(pool)
    assert found.tolist() == pytest.approx([_entropy(row) for row in pool.student_outputs().tolist()], rel=1e-5)


def test_entropy_of_one_hot_and_uniform_predictions():
    pool = Pool(torch.tensor([[200.0, 0.0, -200.0], [1.0, 1.0, 1.0]]), lambda: torch.zeros(2, 3), 4.0, torch.zeros(2))
    assert teacher_entropy.score(pool).tolist() == pytest.approx([0.0, math.log(3)], abs=1e-6)


def test_random_is_the_noise_of_the_plan_and_uses_no_student():
    pool, calls = _pool()
    assert torch.equal(random.score(pool), pool.noise)
    assert calls == []
