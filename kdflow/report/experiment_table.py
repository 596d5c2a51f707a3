"""The table of an experiment: methods by accuracy, mean and spread over seeds."""

from __future__ import annotations

from dataclasses import dataclass

from kdflow.training.record import RunRecord, TeacherRecord, budget_note, mean_std

COLUMNS = ("Method", "Test top-1 %", "Against kd", "n", "Best epoch %")
BASELINE = "kd"


@dataclass(frozen=True)
class ExperimentResults:
    """An experiment's records."""

    dataset: str
    student: str
    teacher: TeacherRecord
    runs: dict[str, list[RunRecord]]

    @property
    def budget_note(self) -> str:
        """What all of it was run at, where that is less than a full run."""
        return budget_note(run for runs in self.runs.values() for run in runs)

    @property
    def title(self) -> str:
        """Dataset, teacher and student."""
        teacher = f"{self.teacher.architecture} ({self.teacher.accuracy.top1:.2f} %)"
        return f"{self.dataset}: {teacher} -> {self.student}"


def rows(results: ExperimentResults) -> list[tuple[str, ...]]:
    """A row of `HEAD` per method."""
    table: list[tuple[str, ...]] = []
    for method, runs in results.runs.items():
        table.append(
            (
                method,
                str(mean_std([run.final.top1 for run in runs])),
                _gain(runs, results.runs.get(BASELINE, [])) if method != BASELINE else "",
                str(len(runs)),
                str(mean_std([run.best.top1 for run in runs])),
            )
        )
    return table


def _gain(runs: list[RunRecord], baseline: list[RunRecord]) -> str:
    """Mean and deviation of the difference, seed by seed: both saw the same views."""
    if not baseline:
        return ""
    pairs = zip(runs, baseline, strict=True)
    return mean_std([run.final.top1 - other.final.top1 for run, other in pairs]).signed


def notes(results: ExperimentResults) -> list[str]:
    """What a reader must know to read the table."""
    some = next(iter(results.runs.values()))[0]
    lines = [
        f"{some.settings.training.epochs} epochs, {some.settings.train_images:,} training images, "
        f"mean (sample standard deviation, ddof 1) over n seeds of the last epoch's test accuracy.",
        "Against kd: the same seed's difference. Best epoch: chosen on the test set, so no result.",
    ]
    return lines + ([f"Not a full run: {results.budget_note}."] if results.budget_note else [])


def markdown(results: ExperimentResults) -> str:
    """The table with its title and notes."""
    lines = [f"# {results.title}", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {' | '.join(row)} |" for row in rows(results)]
    return "\n".join([*lines, "", *notes(results), ""])
