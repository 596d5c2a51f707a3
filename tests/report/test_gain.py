"""The gain of distillation: numbers compared with slow ones, and verdicts that never exceed their evidence."""

import math
import random
import statistics

import pytest
from factories import make_predictions

from kdflow.report.gain import Gain, Summary, SummaryRow, compute_gain, rows
from kdflow.training.record import mean_std


def runs(values, images=250):
    """Records of one seed each; the accuracies are in percent, and a more accurate run is right on more images."""
    return [make_predictions([i < value * images / 100 for i in range(images)], i) for i, value in enumerate(values)]


def test_the_gain_is_computed_seed_by_seed():
    result = compute_gain(runs([80.0, 84.0, 82.0], 10_000), runs([78.0, 83.0, 82.0], 10_000), 10_000, 10.0)
    assert result.difference.mean == pytest.approx(1.0)
    assert result.difference.std == pytest.approx(statistics.stdev([2.0, 1.0, 0.0]))
    assert result.standard_error == pytest.approx(1.0 / math.sqrt(3)), "of seeds; that of images is smaller"
    assert (result.top1, result.baseline_top1) == pytest.approx((82.0, 81.0))


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_standard_error_is_that_of_pairs_without_a_difference(seeds):
    rng = random.Random(0)

    def draw():  # images on which both students are usually right or wrong together
        hard = [rng.random() < 0.3 for _ in range(250)]
        one, other = ([rng.random() < (0.2 if h else 0.9) for h in hard] for _ in range(2))
        return one, other

    drawn = [
        [compute_gain(*([make_predictions(student)] for student in draw()), 250, 20.0) for _ in range(seeds)]
        for _ in range(400)
    ]
    differences = [statistics.fmean(gain.difference.mean for gain in gains) for gains in drawn]
    pairs = [draw() for _ in range(seeds)]
    arms = [[make_predictions(pair[arm], seed) for seed, pair in enumerate(pairs)] for arm in range(2)]
    result = compute_gain(*arms, 250, 20.0)
    of_seeds = 0.0 if result.difference.std is None else result.difference.std / math.sqrt(seeds)
    assert result.standard_error == pytest.approx(max(statistics.stdev(differences), of_seeds), rel=0.15)


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (1.2, "is within noise: +1.20 points"),  # 3 images, all in one direction: 1.7 standard errors
        (-1.2, "is within noise: -1.20 points"),
        (2.0, "Distillation improved accuracy: +2.00 points"),
        (-2.0, "Distillation reduced accuracy: -2.00 points"),
    ],
)
def test_a_gain_of_more_than_two_standard_errors_is_significant(difference, verdict):
    result = compute_gain(runs([60.0 + difference]), runs([60.0]), 250, 20.0)
    assert verdict in result.verdict
    assert "n = 1, 250 test images, standard error 0." in result.verdict
    assert ("one seed, so the variation between seeds is unknown" in result.verdict) == (abs(difference) > 1.9)


def test_equal_and_perfect_students_are_noise_too():
    assert "is within noise" in compute_gain(runs([100.0], 50), runs([100.0], 50), 50, 20.0).verdict


def summary(result: Gain | None) -> Summary:
    models = [
        SummaryRow(role=role, model=role, params=params, flops=flops, top1=mean_std([90.0]), agreement=None, weights=())
        for role, params, flops in (("teacher", 1000, 4000), ("student", 100, 1000))
    ]
    counts = {"classes": 5, "image_size": 64, "train_images": 500, "test_images": 250, "epochs": 8}
    notes = {"budget_note": "", "teacher_source": "trained", "teacher_trained": True, "majority_accuracy": 20.0}
    return Summary(dataset="photos", **counts, **notes, models=models, gain=result)


def test_the_summary():
    found = summary(None)
    assert found.compression == "student has 1/10.0 of teacher's parameters and 1/4.0 of its FLOPs."
    assert "--compare" in found.verdict
    assert found.warnings == []
    assert found.student_is_useful
    assert "500 training and 250 test images" in found.title
    assert [row[0] for row in rows(found)] == ["teacher", "student"]
    assert Summary.model_validate_json(found.model_dump_json()) == found
