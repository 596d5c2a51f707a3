"""Pick: the hardest half of the pool, by the loss's own divergence."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdflow.losses import kl_per_sample
from kdflow.picks import hardest_half, kl

SCORE = st.floats(-1000, 1000, width=32)


@settings(deadline=None)
@given(st.lists(SCORE, min_size=1, max_size=40, unique=True).filter(lambda scores: len(scores) % 2 == 0))
def test_half_with_the_largest_scores_is_kept(scores):
    kept = hardest_half(torch.tensor(scores)).tolist()
    ranked = sorted(range(len(scores)), key=lambda i: scores[i], reverse=True)
    assert len(kept) == len(scores) // 2
    assert set(kept) == set(ranked[: len(scores) // 2])


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=2, max_size=40).filter(lambda scores: len(scores) % 2 == 0))
def test_with_ties_still_half_is_kept_and_none_twice(scores):
    kept = hardest_half(torch.tensor(scores)).tolist()
    assert len(kept) == len(set(kept)) == len(scores) // 2
    left = set(range(len(scores))) - set(kept)
    assert min(scores[i] for i in kept) >= max(scores[i] for i in left)


def test_of_two_the_larger_is_kept():
    assert hardest_half(torch.tensor([0.5, 0.1])).tolist() == [0]
    assert hardest_half(torch.tensor([-0.5, 0.1])).tolist() == [1]


def test_the_half_is_over_the_pool_and_not_per_image():
    # Images 0, 1, 2 in two draws each, as the pool is stacked: both draws of images 0 and 1 beat those of 2.
    first_draw, second_draw = [9.0, 5.0, 1.0], [8.0, 0.5, 0.2]
    kept = hardest_half(torch.tensor(first_draw + second_draw)).tolist()
    assert sorted(kept) == [0, 1, 3]  # image 0 twice, image 2 not at all


def test_kl_score_is_the_loss_per_sample():
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(12, 7, generator=generator) for _ in range(2))
    for tau in (1.0, 4.0):
        assert torch.equal(kl.score(teacher, student, tau), kl_per_sample(teacher, student, tau))
    assert not torch.allclose(kl.score(teacher, student, 1.0), kl.score(teacher, student, 4.0))
    assert not torch.allclose(kl.score(teacher, student, 4.0), kl.score(student, teacher, 4.0))
