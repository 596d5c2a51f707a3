"""The summary of `kdflow distill`: the gain of distillation and its uncertainty. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from kdflow.config import Settings
from kdflow.training.record import MeanStd, RunRecord, TeacherRecord, mean_std

SIGNIFICANT = 2.0  # standard errors; a smaller gain is within noise
BASELINE = "ce"  # the method that the others are compared with
STUDENT_ADVICE = "Train longer (--epochs), on more images, or choose another student"
TRAINED_TEACHER_ADVICE = "Train it longer (--teacher-epochs), on more images, or choose another teacher"
GIVEN_TEACHER_ADVICE = (
    "Check that it has the same classes in the same order, and that its images were resized the same way (--side)"
)


def min_useful_accuracy(majority_accuracy: float, test_images: int) -> float:
    """Return the accuracy in percent of a constant prediction plus two of its standard errors.

    A model that is not above it may be as good as one that always predicts the largest class.
    """
    p = majority_accuracy / 100
    return majority_accuracy + SIGNIFICANT * 100 * math.sqrt(p * (1 - p) / test_images)


class Gain(Settings):
    """The difference in accuracy between a method and cross-entropy alone, seed by seed, in percentage points.

    `standard_error` is the larger of two. The first is that of a paired comparison, because both students predict the
    same images: for one seed it is sqrt(b + c) / n, as in McNemar's test (McNemar, 1947, Psychometrika 12), where b and
    c are the numbers of images that only one of the two predicts right, and n is the number of images. The second is
    the standard error of the mean over seeds; more images do not reduce it. `top1` and `baseline_top1` are the mean
    accuracies of both, `majority_accuracy` is that of always predicting the largest class, in percent.
    """

    difference: MeanStd
    test_images: int
    standard_error: float
    top1: float
    baseline_top1: float
    majority_accuracy: float

    @property
    def verdict(self) -> str:
        """A sentence on whether distillation improved the accuracy, or on why that cannot be judged."""
        arms = {"distillation": self.top1, "cross-entropy alone": self.baseline_top1}
        required = min_useful_accuracy(self.majority_accuracy, self.test_images)
        failed = [f"{name} ({top1:.2f} %)" for name, top1 in arms.items() if top1 <= required]
        if failed:
            return (
                f"No verdict on distillation: the student trained by {' and by '.join(failed)} is not better than a "
                f"constant prediction ({self.majority_accuracy:.2f} %, or {required:.2f} % with two standard errors). "
                f"{STUDENT_ADVICE}."
            )
        mean, n = self.difference.mean, self.difference.n
        evidence = f"n = {n}, {self.test_images:,} test images, standard error {self.standard_error:.2f}"
        points = f"{self.difference.signed} points against cross-entropy alone ({evidence})"
        if abs(mean) <= SIGNIFICANT * self.standard_error:
            return f"The gain of distillation is within noise: {points}."
        verb = "improved" if mean > 0 else "reduced"
        one_seed = "; one seed, so the variation between seeds is unknown" if n == 1 else ""
        return f"Distillation {verb} accuracy: {points}{one_seed}."


def compute_gain(
    runs: Sequence[RunRecord], baseline: Sequence[RunRecord], test_images: int, majority_accuracy: float
) -> Gain:
    """Compare the runs of a method with runs of cross-entropy alone with the same seeds, image by image."""
    pairs = list(zip(runs, baseline, strict=True))
    difference = mean_std([run.final.top1 - other.final.top1 for run, other in pairs])
    image_differences = [0] * test_images  # summed over the seeds
    for run, other in pairs:
        bits = zip(run.correct_images(test_images), other.correct_images(test_images), strict=True)
        for image, (correct, baseline_correct) in enumerate(bits):
            image_differences[image] += correct - baseline_correct
    images = 100 * math.sqrt(sum(d**2 for d in image_differences)) / (test_images * len(pairs))
    seeds = 0.0 if difference.std is None else difference.std / math.sqrt(difference.n)
    return Gain(
        difference=difference,
        test_images=test_images,
        standard_error=max(images, seeds),
        top1=mean_std([run.final.top1 for run in runs]).mean,
        baseline_top1=mean_std([run.final.top1 for run in baseline]).mean,
        majority_accuracy=majority_accuracy,
    )


class SummaryRow(Settings):
    """A model of the summary: parameters, FLOPs for one image, accuracy in percent, and files of its weights.

    `final_test_top1` is the accuracy on test/, if the folder has val/ too, which is the test set of the others then.
    """

    role: str
    model: str
    params: int
    flops: int
    top1: MeanStd
    agreement: MeanStd | None
    weights: Annotated[tuple[str, ...], Field(strict=False)]
    final_test_top1: MeanStd | None = Field(default=None, exclude_if=lambda value: value is None)


class Summary(Settings):
    """The result of a distillation.

    `budget_note` states a reduced budget; it is empty for a full one. `teacher_trained` is whether the teacher was
    trained by this command, not taken from a file. `majority_accuracy` is the accuracy in percent of a constant
    prediction of the test set's largest class. `final_test_images` is the number of images in test/, if the folder has
    val/ too.
    """

    dataset: str
    classes: int
    image_size: int
    train_images: int
    test_images: int
    epochs: int
    budget_note: str
    teacher_source: str
    teacher_trained: bool
    majority_accuracy: float
    models: Annotated[tuple[SummaryRow, ...], Field(strict=False, min_length=2)]
    gain: Gain | None
    final_test_images: int | None = Field(default=None, exclude_if=lambda value: value is None)

    def with_final_test(self, top1: Mapping[str, float], images: int) -> Summary:
        """Return the summary with the accuracies on the `images` of test/ of all files of weights."""
        models = tuple(
            row.model_copy(update={"final_test_top1": mean_std([top1[file] for file in row.weights])})
            for row in self.models
        )
        return self.model_copy(update={"models": models, "final_test_images": images})

    @property
    def title(self) -> str:
        """The dataset and the number of epochs."""
        return (
            f"{self.dataset}: {self.classes} classes at {self.image_size} px, {self.train_images:,} training and "
            f"{self.test_images:,} test images, {self.epochs} epochs"
        )

    @property
    def final_test(self) -> str:
        """A sentence on the images of test/; empty if they were not measured."""
        if self.final_test_images is None:
            return ""
        return f"test/: {self.final_test_images:,} images, measured once at the end; everything else is from val/."

    @property
    def student_is_useful(self) -> bool:
        """True if the distilled student is better than a constant prediction by more than two standard errors."""
        return self.models[1].top1.mean > min_useful_accuracy(self.majority_accuracy, self.test_images)

    @property
    def warnings(self) -> list[str]:
        """Warnings about models no better than a constant prediction, and a teacher worse than the baseline."""
        required = min_useful_accuracy(self.majority_accuracy, self.test_images)
        teacher, *students = self.models
        teacher_advice = TRAINED_TEACHER_ADVICE if self.teacher_trained else GIVEN_TEACHER_ADVICE
        lines = [
            f"warning: {row.role} ({row.top1.mean:.2f} %): is not better than a constant prediction, which is right on "
            f"{self.majority_accuracy:.2f} % of the test images, or {required:.2f} % with two standard errors. {advice}"
            for row, advice in zip(self.models, (teacher_advice, *(STUDENT_ADVICE for _ in students)), strict=True)
            if row.top1.mean <= required
        ]
        baseline = next((row for row in students if row.role == student_role(BASELINE)), None)
        if baseline is not None and teacher.top1.mean < baseline.top1.mean:
            lines.append(
                f"warning: the teacher ({teacher.top1.mean:.2f} %) is less accurate than the student that was trained "
                f"without it ({baseline.top1.mean:.2f} %), so distillation is unlikely to help. {teacher_advice}"
            )
        return lines

    @property
    def verdict(self) -> str:
        """A sentence on whether distillation improved the accuracy, if that was measured."""
        if self.gain is None:
            return "The gain of distillation was not measured; --compare also trains the student on the labels alone."
        return self.gain.verdict

    @property
    def compression(self) -> str:
        """A sentence on the student's size and cost relative to the teacher's."""
        teacher, student = self.models[:2]
        params, flops = _share(student.params, teacher.params), _share(student.flops, teacher.flops)
        sentence = f"{student.model} has {params} {teacher.model}'s parameters and {flops} its FLOPs."
        larger = [
            text
            for text, of_student, of_teacher in (
                ("is larger", student.params, teacher.params),
                ("needs more computation", student.flops, teacher.flops),
            )
            if of_student > of_teacher
        ]
        return sentence + (f" The student {' and '.join(larger)} than its teacher." if larger else "")


def _share(student: int, teacher: int) -> str:
    """Return the student's count as a share or a multiple of the teacher's."""
    return f"1/{teacher / student:.1f} of" if student <= teacher else f"{student / teacher:.1f} times"


COLUMNS = ("", "Model", "Test top-1 %", "Agreement %", "Params 1e6", "GFLOPs")


def columns(summary: Summary) -> tuple[str, ...]:
    """Return the names of the columns of `rows`."""
    if summary.final_test_images is None:
        return COLUMNS
    return (*COLUMNS[:2], "val/ top-1 %", "test/ top-1 %", *COLUMNS[3:])


def rows(summary: Summary) -> list[tuple[str, ...]]:
    """Format one row for each model."""
    return [
        (
            row.role,
            row.model,
            str(row.top1),
            *([str(row.final_test_top1)] if summary.final_test_images is not None else []),
            str(row.agreement) if row.agreement else "",
            f"{row.params / 1e6:.3f}",
            f"{row.flops / 1e9:.3f}",
        )
        for row in summary.models
    ]


def teacher_row(model: str, record: TeacherRecord, cost: tuple[int, int], weights: str) -> SummaryRow:
    """Return the teacher's row; `cost` is its parameters and FLOPs."""
    top1, (params, flops) = mean_std([record.accuracy.top1]), cost
    return SummaryRow(
        role="teacher", model=model, params=params, flops=flops, top1=top1, agreement=None, weights=(weights,)
    )


def student_role(method: str) -> str:
    """Return the text of the first column for students of a method."""
    return f"student, {method}"


def student_row(method: str, runs: Sequence[RunRecord], cost: tuple[int, int], weights: Sequence[str]) -> SummaryRow:
    """Return a student's row over its seeds; `cost` is its parameters and FLOPs."""
    agreements, (params, flops) = [run.agreement for run in runs if run.agreement is not None], cost
    return SummaryRow(
        role=student_role(method),
        model=runs[0].settings.architecture,
        params=params,
        flops=flops,
        top1=mean_std([run.final.top1 for run in runs]),
        agreement=mean_std(agreements) if agreements else None,
        weights=tuple(weights),
    )
