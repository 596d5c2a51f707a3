"""The learning-rate schedule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from kdflow import config
from kdflow.training.schedule import learning_rate

TRAINING = config.load_recipes(ROOT).datasets["cifar100"].training


def of_epochs(epochs, milestones=TRAINING.lr_milestones):
    return TRAINING.model_copy(update={"epochs": epochs, "lr_milestones": milestones})


# The paper's code multiplies CRD's milestones 150, 180 and 210 by the factor of the number of epochs and takes int().
@pytest.mark.parametrize(
    ("epochs", "decays"),
    [
        (240, (150, 180, 210)),
        (480, (300, 360, 420)),
        (960, (600, 720, 840)),
        (60, (37, 45, 52)),
        (180, (112, 135, 157)),
        (100, (62, 75, 87)),
    ],
)
@pytest.mark.parametrize("steps", [782, 1, 10])
def test_the_learning_rate_falls_after_whole_epochs(epochs, decays, steps):
    training = of_epochs(epochs)
    assert learning_rate(training, 0, steps) == 0.05
    for i, epoch in enumerate(decays):
        assert learning_rate(training, epoch * steps - 1, steps) == pytest.approx(0.05 / 10**i)
        assert learning_rate(training, epoch * steps, steps) == pytest.approx(0.05 / 10 ** (i + 1))
    assert learning_rate(training, epochs * steps - 1, steps) == pytest.approx(0.05 / 1000)


@pytest.mark.parametrize(("epochs", "rates"), [(1, [0.05]), (2, [0.05, 5e-5]), (4, [0.05, 0.05, 0.005, 5e-5])])
def test_the_first_epoch_of_a_short_run_has_the_full_learning_rate(epochs, rates):
    assert [learning_rate(of_epochs(epochs), epoch * 8, 8) for epoch in range(epochs)] == pytest.approx(rates)


def test_milestones_at_hundredths_fall_on_whole_epochs():
    for hundredth in range(1, 100):
        training = of_epochs(100, (hundredth / 100,))
        assert learning_rate(training, hundredth * 7 - 1, 7) == 0.05
        assert learning_rate(training, hundredth * 7, 7) == pytest.approx(0.005)


@given(epochs=st.integers(1, 2000), steps=st.integers(1, 6000), data=st.data())
def test_milestones_are_rounded_down_to_whole_epochs(epochs, steps, data):
    epoch = data.draw(st.integers(0, epochs - 1))
    step = epoch * steps + data.draw(st.integers(0, steps - 1))
    passed = sum(epoch >= max(1, eighths * epochs // 8) for eighths in (5, 6, 7))
    assert learning_rate(of_epochs(epochs), step, steps) == pytest.approx(0.05 * 0.1**passed)
