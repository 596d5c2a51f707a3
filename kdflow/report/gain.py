"""Whether distillation paid: what the short way's runs measured, and how sure that is. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from kdflow.config import Settings
from kdflow.training.record import MeanStd, RunRecord, TeacherRecord, mean_std

ERRORS = 2.0  # so many standard errors are more than noise


class Gain(Settings):
    """A method against cross-entropy alone, seed by seed, in percentage points.

    `standard_error` is the larger of two: of the difference of two accuracies on so many test images (binomial, and as
    if of different images, so rather too large), and of the mean over seeds. More seeds do not lessen the first.
    """

    gain: MeanStd
    test_images: int
    standard_error: float

    @property
    def verdict(self) -> str:
        """One sentence."""
        g, n = (
            self.gain,
            f"n = {self.gain.n}, {self.test_images:,} test images, standard error {self.standard_error:.2f}",
        )
        points = f"{g.signed} points against cross-entropy alone ({n})"
        if abs(g.mean) <= ERRORS * self.standard_error:
            return f"Whether distillation paid cannot be told from noise: {points}."
        word = "paid" if g.mean > 0 else "cost accuracy"
        alone = "; one seed, so the spread of seeds is not known" if g.n == 1 else ""
        return f"Distillation {word}: {points}{alone}."


def gain(runs: Sequence[RunRecord], alone: Sequence[RunRecord], test_images: int) -> Gain:
    """The gain of `runs` over those of cross-entropy of the same seeds."""
    pairs = list(zip(runs, alone, strict=True))
    found = mean_std([run.final.top1 - other.final.top1 for run, other in pairs])
    shares = [mean_std([record.final.top1 for record in records]).mean / 100 for records in (runs, alone)]
    images = 100 * math.sqrt(sum(p * (1 - p) for p in shares) / test_images)
    seeds = 0.0 if found.std is None else found.std / math.sqrt(found.n)
    return Gain(gain=found, test_images=test_images, standard_error=max(images, seeds))


class SummaryRow(Settings):
    """A model of the summary: parameters, FLOPs of an image, accuracy in percent; where its weights are."""

    role: str
    model: str
    params: int
    flops: int
    top1: MeanStd
    agreement: MeanStd | None
    weights: Annotated[tuple[str, ...], Field(strict=False)]


class Summary(Settings):
    """What came of a distillation; `budget_note` says at which budget, where that is less than a full one.

    `largest_class` is the percentage of the test images that are of one class; not told of a teacher trained here.
    """

    dataset: str
    classes: int
    image_size: int
    train_images: int
    test_images: int
    epochs: int
    budget_note: str
    teacher_source: str
    largest_class: float | None
    models: Annotated[tuple[SummaryRow, ...], Field(strict=False, min_length=2)]
    gain: Gain | None

    @property
    def title(self) -> str:
        """The data, and for how long it was learned from."""
        return (
            f"{self.dataset}: {self.classes} classes at {self.image_size} px, {self.train_images:,} training and "
            f"{self.test_images:,} test images, {self.epochs} epochs"
        )

    @property
    def warning(self) -> str | None:
        """Of a teacher from a file that knows nothing of these images."""
        if self.largest_class is None or self.models[0].top1.mean > self.largest_class:
            return None
        return (
            f"warning: always to say one class would be right on {self.largest_class:.2f} % of the test images, and "
            "the teacher is no better; are its classes these, in this order, and were its images resized so (--side)?"
        )

    @property
    def verdict(self) -> str:
        """One sentence that says whether it paid, as far as that can be known."""
        if self.gain is None:
            return "Whether distillation paid is not known: --compare trains the student on the labels alone as well."
        return self.gain.verdict

    @property
    def smaller(self) -> str:
        """The student against the teacher."""
        teacher, student = self.models[:2]
        params, flops = teacher.params / student.params, teacher.flops / student.flops
        return f"{student.model} has 1/{params:.1f} of {teacher.model}'s parameters and 1/{flops:.1f} of its FLOPs."


COLUMNS = ("", "Model", "Test top-1 %", "As teacher %", "Params 1e6", "GFLOPs")


def rows(summary: Summary) -> list[tuple[str, ...]]:
    """A row of `HEAD` per model."""
    return [
        (
            one.role,
            one.model,
            str(one.top1),
            str(one.agreement) if one.agreement else "",
            f"{one.params / 1e6:.3f}",
            f"{one.flops / 1e9:.3f}",
        )
        for one in summary.models
    ]


def teacher_row(model: str, found: TeacherRecord, cost: tuple[int, int], weights: str) -> SummaryRow:
    """The teacher's row."""
    top1, (params, flops) = mean_std([found.accuracy.top1]), cost
    return SummaryRow(
        role="teacher", model=model, params=params, flops=flops, top1=top1, agreement=None, weights=(weights,)
    )


def student_row(method: str, runs: Sequence[RunRecord], cost: tuple[int, int], weights: Sequence[str]) -> SummaryRow:
    """A student's row."""
    same, (params, flops) = [run.agreement for run in runs if run.agreement is not None], cost
    return SummaryRow(
        role=f"student, {method}",
        model=runs[0].settings.architecture,
        params=params,
        flops=flops,
        top1=mean_std([run.final.top1 for run in runs]),
        agreement=mean_std(same) if same else None,
        weights=tuple(weights),
    )
