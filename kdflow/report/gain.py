"""The summary of `kdflow distill`: the gain of distillation and its uncertainty. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from kdflow.config import Settings
from kdflow.training.record import MeanStd, RunRecord, TeacherRecord, mean_std

SIGNIFICANT = 2.0  # standard errors; a smaller gain is within noise


class Gain(Settings):
    """The difference in accuracy between a method and cross-entropy alone, seed by seed, in percentage points.

    `standard_error` is the larger of two: the binomial standard error of the difference between two accuracies on this
    number of test images, and the standard error of the mean over seeds. The first treats the two sets of images as
    independent, so it is an upper bound; more seeds do not reduce it.
    """

    difference: MeanStd
    test_images: int
    standard_error: float

    @property
    def verdict(self) -> str:
        """A sentence on whether distillation improved the accuracy."""
        mean, n = self.difference.mean, self.difference.n
        evidence = f"n = {n}, {self.test_images:,} test images, standard error {self.standard_error:.2f}"
        points = f"{self.difference.signed} points against cross-entropy alone ({evidence})"
        if abs(mean) <= SIGNIFICANT * self.standard_error:
            return f"The gain of distillation is within noise: {points}."
        verb = "improved" if mean > 0 else "reduced"
        one_seed = "; one seed, so the variation between seeds is unknown" if n == 1 else ""
        return f"Distillation {verb} accuracy: {points}{one_seed}."


def compute_gain(runs: Sequence[RunRecord], baseline: Sequence[RunRecord], test_images: int) -> Gain:
    """Compare the runs of a method with runs of cross-entropy alone with the same seeds."""
    pairs = list(zip(runs, baseline, strict=True))
    difference = mean_std([run.final.top1 - other.final.top1 for run, other in pairs])
    accuracies = [mean_std([record.final.top1 for record in records]).mean / 100 for records in (runs, baseline)]
    images = 100 * math.sqrt(sum(p * (1 - p) for p in accuracies) / test_images)
    seeds = 0.0 if difference.std is None else difference.std / math.sqrt(difference.n)
    return Gain(difference=difference, test_images=test_images, standard_error=max(images, seeds))


class SummaryRow(Settings):
    """A model of the summary: parameters, FLOPs for one image, accuracy in percent, and files of its weights."""

    role: str
    model: str
    params: int
    flops: int
    top1: MeanStd
    agreement: MeanStd | None
    weights: Annotated[tuple[str, ...], Field(strict=False)]


class Summary(Settings):
    """The result of a distillation.

    `budget_note` states a reduced budget; it is empty for a full one. `majority_accuracy` is the accuracy in percent of
    a constant prediction of the test set's largest class; it is None if the teacher was trained by this command.
    """

    dataset: str
    classes: int
    image_size: int
    train_images: int
    test_images: int
    epochs: int
    budget_note: str
    teacher_source: str
    majority_accuracy: float | None
    models: Annotated[tuple[SummaryRow, ...], Field(strict=False, min_length=2)]
    gain: Gain | None

    @property
    def title(self) -> str:
        """The dataset and the number of epochs."""
        return (
            f"{self.dataset}: {self.classes} classes at {self.image_size} px, {self.train_images:,} training and "
            f"{self.test_images:,} test images, {self.epochs} epochs"
        )

    @property
    def warning(self) -> str | None:
        """A warning about a teacher from a file that is no better than a constant prediction."""
        if self.majority_accuracy is None or self.models[0].top1.mean > self.majority_accuracy:
            return None
        return (
            "warning: the teacher is no better than a constant prediction, which is right on "
            f"{self.majority_accuracy:.2f} % of the test images; check that it has the same classes in the same order, "
            "and that its images were resized the same way (--side)"
        )

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
        params, flops = teacher.params / student.params, teacher.flops / student.flops
        return f"{student.model} has 1/{params:.1f} of {teacher.model}'s parameters and 1/{flops:.1f} of its FLOPs."


COLUMNS = ("", "Model", "Test top-1 %", "Agreement %", "Params 1e6", "GFLOPs")


def rows(summary: Summary) -> list[tuple[str, ...]]:
    """Format one row with the columns `COLUMNS` for each model."""
    return [
        (
            row.role,
            row.model,
            str(row.top1),
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


def student_row(method: str, runs: Sequence[RunRecord], cost: tuple[int, int], weights: Sequence[str]) -> SummaryRow:
    """Return a student's row over its seeds; `cost` is its parameters and FLOPs."""
    agreements, (params, flops) = [run.agreement for run in runs if run.agreement is not None], cost
    return SummaryRow(
        role=f"student, {method}",
        model=runs[0].settings.architecture,
        params=params,
        flops=flops,
        top1=mean_std([run.final.top1 for run in runs]),
        agreement=mean_std(agreements) if agreements else None,
        weights=tuple(weights),
    )
