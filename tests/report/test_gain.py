"""Whether distillation paid: figures against slow ones by hand, and sentences that claim no more than they can."""

import math
import random
import statistics

import pytest
from factories import make_record

from kdflow.report.gain import Gain, Summary, SummaryRow, gain, rows
from kdflow.training.record import mean_std


def runs(values):
    return [make_record(seed, value) for seed, value in enumerate(values)]


def test_gain_is_seed_by_seed():
    found = gain(runs([80.0, 84.0, 82.0]), runs([78.0, 83.0, 82.0]), 10_000)
    assert found.gain.mean == pytest.approx(1.0)
    assert found.gain.std == pytest.approx(statistics.stdev([2.0, 1.0, 0.0]))
    assert found.standard_error == pytest.approx(1.0 / math.sqrt(3)), "of seeds, larger than that of images"


def test_the_standard_error_is_that_of_two_draws_of_test_images():
    found = gain(runs([70.0]), runs([60.0]), 250)
    rng = random.Random(0)

    def measured(share):
        return 100 * sum(rng.random() < share for _ in range(250)) / 250

    drawn = [measured(0.7) - measured(0.6) for _ in range(3000)]
    assert found.standard_error == pytest.approx(statistics.stdev(drawn), rel=0.1)


@pytest.mark.parametrize(
    ("difference", "says"),
    [
        (8.0, "cannot be told from noise: +8.00 points"),
        (-8.0, "cannot be told from noise: -8.00 points"),
        (10.0, "Distillation paid: +10.00 points"),
        (-10.0, "Distillation cost accuracy: -10.00 points"),
    ],
)
def test_two_standard_errors_are_more_than_noise(difference, says):
    found = gain(runs([60.0 + difference]), runs([60.0]), 250)  # a standard error of 4.1 to 4.4
    assert says in found.verdict
    assert "n = 1, 250 test images, standard error 4." in found.verdict
    assert ("one seed, so the spread of seeds is not known" in found.verdict) == (abs(difference) > 9)


def test_equal_and_perfect_students_are_noise_too():
    assert "cannot be told from noise" in gain(runs([100.0]), runs([100.0]), 50).verdict


def summary(found: Gain | None, largest_class: float | None = None) -> Summary:
    models = [
        SummaryRow(role=role, model=role, params=params, flops=flops, top1=mean_std([90.0]), agreement=None, weights=())
        for role, params, flops in (("teacher", 1000, 4000), ("student", 100, 1000))
    ]
    counts = {"classes": 5, "image_size": 64, "train_images": 500, "test_images": 250, "epochs": 8}
    told = {"budget_note": "", "teacher_source": "trained here", "largest_class": largest_class}
    return Summary(dataset="photos", **counts, **told, models=models, gain=found)


def test_the_summary():
    found = summary(None)
    assert found.smaller == "student has 1/10.0 of teacher's parameters and 1/4.0 of its FLOPs."
    assert "--compare" in found.verdict
    assert "500 training and 250 test images" in found.title
    assert [row[0] for row in rows(found)] == ["teacher", "student"]
    assert Summary.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(("largest_class", "warned"), [(None, False), (89.9, False), (90.0, True), (95.0, True)])
def test_a_teacher_that_knows_nothing_is_warned_of(largest_class, warned):
    found = summary(None, largest_class).warning
    assert (found is not None) == warned
    assert not warned or f"{largest_class:.2f} % of the test images" in found
