"""The gain of distillation: numbers compared with slow ones, and verdicts that never exceed their evidence."""

import math
import random
import statistics

import pytest
from factories import make_record

from kdflow.report.gain import Gain, Summary, SummaryRow, compute_gain, rows
from kdflow.training.record import mean_std


def runs(values):
    return [make_record(seed, value) for seed, value in enumerate(values)]


def test_the_gain_is_computed_seed_by_seed():
    result = compute_gain(runs([80.0, 84.0, 82.0]), runs([78.0, 83.0, 82.0]), 10_000)
    assert result.difference.mean == pytest.approx(1.0)
    assert result.difference.std == pytest.approx(statistics.stdev([2.0, 1.0, 0.0]))
    assert result.standard_error == pytest.approx(1.0 / math.sqrt(3)), "of seeds; that of images is smaller"


def test_the_standard_error_is_that_of_two_draws_of_test_images():
    result = compute_gain(runs([70.0]), runs([60.0]), 250)
    rng = random.Random(0)

    def draw(accuracy):
        return 100 * sum(rng.random() < accuracy for _ in range(250)) / 250

    drawn = [draw(0.7) - draw(0.6) for _ in range(3000)]
    assert result.standard_error == pytest.approx(statistics.stdev(drawn), rel=0.1)


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (8.0, "is within noise: +8.00 points"),
        (-8.0, "is within noise: -8.00 points"),
        (10.0, "Distillation improved accuracy: +10.00 points"),
        (-10.0, "Distillation reduced accuracy: -10.00 points"),
    ],
)
def test_a_gain_of_more_than_two_standard_errors_is_significant(difference, verdict):
    result = compute_gain(runs([60.0 + difference]), runs([60.0]), 250)  # a standard error of 4.1 to 4.4
    assert verdict in result.verdict
    assert "n = 1, 250 test images, standard error 4." in result.verdict
    assert ("one seed, so the variation between seeds is unknown" in result.verdict) == (abs(difference) > 9)


def test_equal_and_perfect_students_are_noise_too():
    assert "is within noise" in compute_gain(runs([100.0]), runs([100.0]), 50).verdict


def summary(result: Gain | None, majority_accuracy: float | None = None) -> Summary:
    models = [
        SummaryRow(role=role, model=role, params=params, flops=flops, top1=mean_std([90.0]), agreement=None, weights=())
        for role, params, flops in (("teacher", 1000, 4000), ("student", 100, 1000))
    ]
    counts = {"classes": 5, "image_size": 64, "train_images": 500, "test_images": 250, "epochs": 8}
    notes = {"budget_note": "", "teacher_source": "trained", "majority_accuracy": majority_accuracy}
    return Summary(dataset="photos", **counts, **notes, models=models, gain=result)


def test_the_summary():
    found = summary(None)
    assert found.compression == "student has 1/10.0 of teacher's parameters and 1/4.0 of its FLOPs."
    assert "--compare" in found.verdict
    assert "500 training and 250 test images" in found.title
    assert [row[0] for row in rows(found)] == ["teacher", "student"]
    assert Summary.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(("majority_accuracy", "warned"), [(None, False), (89.9, False), (90.0, True), (95.0, True)])
def test_a_teacher_no_better_than_the_majority_class_gives_a_warning(majority_accuracy, warned):
    found = summary(None, majority_accuracy).warning
    assert (found is not None) == warned
    assert not warned or f"{majority_accuracy:.2f} % of the test images" in found
