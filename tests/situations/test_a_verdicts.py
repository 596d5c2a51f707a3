"""Verdicts and warnings of `kdflow distill` where a model has not learned."""

import math

import pytest
from factories import make_predictions

from kdflow.core.errors import UserError
from kdflow.report.gain import Gain, Summary, SummaryRow, compute_gain, min_useful_accuracy
from kdflow.training.record import mean_std, pack_bits

IMAGES = 100  # of five equally frequent classes: constant prediction 20 %, with two standard errors 28 %


def first(count, images=IMAGES):
    return [make_predictions([i < count for i in range(images)])]


def make_summary(
    teacher: float, student: float, baseline: float | None = None, trained: bool = True, gain: Gain | None = None
) -> Summary:
    top1 = {"teacher": teacher, "student, kd": student} | ({} if baseline is None else {"student, ce": baseline})
    models = [
        SummaryRow(role=role, model="m", params=10, flops=10, top1=mean_std([value]), agreement=None, weights=("w",))
        for role, value in top1.items()
    ]
    counts = {"classes": 5, "image_size": 64, "train_images": 400, "test_images": IMAGES, "epochs": 8}
    notes = {"budget_note": "", "teacher_source": "", "teacher_trained": trained, "majority_accuracy": 20.0}
    return Summary(dataset="photos", **counts, **notes, models=models, gain=gain)


def test_the_limit_is_the_largest_class_and_two_standard_errors():
    assert min_useful_accuracy(20.0, IMAGES) == pytest.approx(28.0)
    assert min_useful_accuracy(100.0, IMAGES) == 100.0


@pytest.mark.parametrize(
    ("student", "baseline", "named"),
    [
        (43, 20, ["cross-entropy alone (20.00 %)"]),
        (20, 43, ["distillation (20.00 %)"]),
        (28, 28, ["distillation (28.00 %)", "cross-entropy alone (28.00 %)"]),
        (43, 29, []),
    ],
)
def test_there_is_no_verdict_if_one_of_the_students_has_not_learned(student, baseline, named):
    verdict = compute_gain(first(student), first(baseline), IMAGES, 20.0).verdict
    assert verdict.startswith("No verdict on distillation") == bool(named)
    assert verdict.startswith("Distillation improved accuracy: +14.00") == (not named)
    assert all(text in verdict for text in named)
    assert not named or "Train longer (--epochs)" in verdict


def test_both_students_predict_the_same_images_so_the_error_is_that_of_pairs():
    method = make_predictions([i < 90 or i >= 96 for i in range(IMAGES)])  # 94 right
    baseline = make_predictions([i < 92 for i in range(IMAGES)])  # 92 right: 4 images gained, 2 lost
    gain = compute_gain([method], [baseline], IMAGES, 20.0)
    assert gain.difference.mean == 2.0
    assert gain.standard_error == pytest.approx(100 * math.sqrt(4 + 2) / IMAGES)


def test_the_images_of_a_record_are_checked_against_its_accuracy():
    record = make_predictions([True, False, False, False, True])
    assert record.correct == pack_bits([True, False, False, False, True]) == "11"
    assert record.correct_images(5) == [True, False, False, False, True]
    with pytest.raises(UserError, match="is not of 4 test images"):
        record.correct_images(4)
    with pytest.raises(UserError, match="is not of 6 test images"):
        record.correct_images(6)


@pytest.mark.parametrize("trained", [True, False])
def test_a_teacher_that_has_not_learned_gives_a_warning_whether_it_was_trained_or_given(trained):
    (line,) = make_summary(28.0, 60.0, trained=trained).warnings
    assert line.startswith("warning: teacher (28.00 %): is not better than a constant prediction")
    assert ("--teacher-epochs" in line) == trained
    assert ("same classes in the same order" in line) != trained
    assert make_summary(29.0, 60.0, trained=trained).warnings == []


def test_a_teacher_below_the_student_trained_without_it_gives_a_warning():
    (line,) = make_summary(70.0, 71.0, 72.0).warnings
    assert "the teacher (70.00 %) is less accurate than the student that was trained without it (72.00 %)" in line
    assert make_summary(72.0, 71.0, 72.0).warnings == []


def test_a_student_that_has_not_learned_gives_a_warning_and_is_not_worth_an_export():
    summary = make_summary(90.0, 20.0)
    (line,) = summary.warnings
    assert line.startswith("warning: student, kd (20.00 %): is not better than a constant prediction")
    assert not summary.student_is_useful
    assert make_summary(90.0, 29.0).student_is_useful
