"""Pick: the hardest share of the pool, by each criterion."""

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
def test_half_with_the_largest_scores_is_kept(scores):
    kept = top_fraction(torch.tensor(scores), 0.5).tolist()
    ranked = sorted(range(len(scores)), key=lambda i: scores[i], reverse=True)
    assert len(kept) == len(scores) // 2
    assert set(kept) == set(ranked[: len(scores) // 2])


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=2, max_size=40).filter(lambda scores: len(scores) % 2 == 0))
def test_with_ties_still_half_is_kept_and_none_twice(scores):
    kept = top_fraction(torch.tensor(scores), 0.5).tolist()
    assert len(kept) == len(set(kept)) == len(scores) // 2
    left = set(range(len(scores))) - set(kept)
    assert min(scores[i] for i in kept) >= max(scores[i] for i in left)


def test_of_two_the_larger_is_kept():
    assert top_fraction(torch.tensor([0.5, 0.1]), 0.5).tolist() == [0]
    assert top_fraction(torch.tensor([-0.5, 0.1]), 0.5).tolist() == [1]


def test_the_half_is_over_the_pool_and_not_per_image():
    # Images 0, 1, 2 in two draws each, as the pool is stacked: both draws of images 0 and 1 beat those of 2.
    first_draw, second_draw = [9.0, 5.0, 1.0], [8.0, 0.5, 0.2]
    kept = top_fraction(torch.tensor(first_draw + second_draw), 0.5).tolist()
    assert sorted(kept) == [0, 1, 3]  # image 0 twice, image 2 not at all


@pytest.mark.parametrize(
    ("n", "keep", "kept"), [(10, 0.3, 3), (100, 0.29, 29), (7, 0.5, 3), (2, 0.01, 1), (3, 1 / 3, 1), (128, 0.5, 64)]
)
def test_share_is_rounded_down_and_at_least_one_is_kept(n, keep, kept):
    assert sorted(top_fraction(torch.arange(float(n)), keep).tolist()) == list(range(n - kept, n))


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 100, width=32), min_size=2, max_size=40), st.floats(0.05, 0.95))
def test_r_is_the_ratio_of_means_and_at_least_one(scores, keep):
    chosen = top_fraction(torch.tensor(scores), keep)
    found = pick_ratio(torch.tensor(scores), chosen).item()
    mean = sum(scores[i] for i in chosen.tolist()) / len(chosen)
    assert found == pytest.approx(mean / (sum(scores) / len(scores)), rel=1e-4)
    assert found >= 1 - 1e-5


def test_r_of_a_pool_that_is_all_equally_easy_is_one():
    """Where the student says what a teacher with one class for everything says, every divergence is 0."""
    assert pick_ratio(torch.zeros(4), torch.tensor([0, 3])).item() == 1.0


def _pool(tau: float = 4.0) -> tuple[Pool, list[str]]:
    generator = torch.Generator().manual_seed(0)
    taught, student = (3 * torch.randn(12, 7, generator=generator) for _ in range(2))
    asked: list[str] = []

    def ask() -> torch.Tensor:
        asked.append("student")
        return student

    return Pool(taught, ask, tau, torch.rand(12, generator=generator)), asked


def _entropy(logits: list[float]) -> float:
    total = sum(math.exp(value) for value in logits)
    return -sum(math.exp(value) / total * math.log(math.exp(value) / total) for value in logits)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_kl_score_is_the_loss_per_sample(tau):
    pool, asked = _pool(tau)
    assert torch.equal(kl.score(pool), kl_per_sample(pool.teacher_logits, pool.student_outputs(), tau))
    assert not torch.allclose(kl.score(pool), kl_per_sample(pool.student_outputs(), pool.teacher_logits, tau))
    assert "student" in asked


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_entropies_are_at_temperature_one_whatever_the_method(tau):
    pool, asked = _pool(tau)
    found = teacher_entropy.score(pool)
    assert asked == []  # it is the teacher's alone
    assert found.tolist() == pytest.approx([_entropy(row) for row in pool.teacher_logits.tolist()], rel=1e-5)
    found = student_entropy.score(pool)
    assert found.tolist() == pytest.approx([_entropy(row) for row in pool.student_outputs().tolist()], rel=1e-5)


def test_entropy_of_certain_and_of_flat_logits():
    pool = Pool(torch.tensor([[200.0, 0.0, -200.0], [1.0, 1.0, 1.0]]), lambda: torch.zeros(2, 3), 4.0, torch.zeros(2))
    assert teacher_entropy.score(pool).tolist() == pytest.approx([0.0, math.log(3)], abs=1e-6)


def test_random_is_the_noise_of_the_plan_and_asks_nobody():
    pool, asked = _pool()
    assert torch.equal(random.score(pool), pool.noise)
    assert asked == []
