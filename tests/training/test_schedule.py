"""The learning-rate schedule."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from kdflow import config
from kdflow.training.schedule import learning_rate

TRAINING = config.load_recipes(ROOT).datasets["cifar100"].training


def of_epochs(epochs, milestones=TRAINING.lr_milestones):
    return TRAINING.model_copy(update={"epochs": epochs, "lr_milestones": milestones})


@pytest.mark.parametrize(
    ("epochs", "decays"),
    [(240, (150, 180, 210)), (480, (300, 360, 420)), (960, (600, 720, 840)), (100, (62.5, 75, 87.5))],
)
@pytest.mark.parametrize("steps", [782, 1, 10])
def test_the_learning_rate_falls_at_its_epochs(epochs, decays, steps):
    training = of_epochs(epochs)
    assert learning_rate(training, 0, steps) == 0.05
    for i, epoch in enumerate(decays):
        first = math.ceil(epoch * steps)
        assert learning_rate(training, first - 1, steps) == pytest.approx(0.05 / 10**i)
        assert learning_rate(training, first, steps) == pytest.approx(0.05 / 10 ** (i + 1))
    assert learning_rate(training, epochs * steps - 1, steps) == pytest.approx(0.05 / 1000)


def test_two_epochs_still_decay_three_times():
    rates = [learning_rate(of_epochs(2), step, 8) for step in range(16)]
    assert rates == pytest.approx([0.05] * 10 + [0.005] * 2 + [0.0005] * 2 + [0.00005] * 2)


def test_milestones_at_tenths_of_a_hundred_epochs_fall_on_whole_epochs():
    training = of_epochs(100, (0.3, 0.6, 0.9))
    for steps in (5005, 7, 3):
        for i, epoch in enumerate((30, 60, 90)):
            assert learning_rate(training, epoch * steps - 1, steps) == pytest.approx(0.05 / 10**i)
            assert learning_rate(training, epoch * steps, steps) == pytest.approx(0.05 / 10 ** (i + 1))


@given(epochs=st.integers(1, 2000), steps=st.integers(1, 6000), data=st.data())
def test_milestones_are_exact_fractions_of_the_run(epochs, steps, data):
    step = data.draw(st.integers(0, epochs * steps - 1))
    passed = sum(Fraction(step, epochs * steps) >= Fraction(at) for at in (0.625, 0.75, 0.875))
    assert learning_rate(of_epochs(epochs), step, steps) == pytest.approx(0.05 * 0.1**passed)
