"""The table of an experiment: the accuracy of each method, mean and standard deviation over seeds."""

from __future__ import annotations

from dataclasses import dataclass

from kdflow.training.record import RunRecord, TeacherRecord, budget_note, distinct_notes, mean_std

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
        """A note on reduced budgets; empty if all runs and the teacher's are full."""
        runs = [run for runs in self.runs.values() for run in runs]
        return "; ".join(distinct_notes([self.teacher.budget_note, budget_note(runs)]))

    @property
    def title(self) -> str:
        """Dataset, teacher and student."""
        teacher = f"{self.teacher.architecture} ({self.teacher.accuracy.top1:.2f} %)"
        return f"{self.dataset}: {teacher} -> {self.student}"


def rows(results: ExperimentResults) -> list[tuple[str, ...]]:
    """Format one row with the columns `COLUMNS` for each method."""
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
    """Format mean and standard deviation of the difference, seed by seed: both trained on the same views."""
    if not baseline:
        return ""
    pairs = zip(runs, baseline, strict=True)
    return mean_std([run.final.top1 - other.final.top1 for run, other in pairs]).signed


def notes(results: ExperimentResults) -> list[str]:
    """Return the notes below the table."""
    run = next(iter(results.runs.values()))[0]
    lines = [
        f"{run.settings.training.epochs} epochs, {run.settings.train_images:,} training images, "
        f"mean (sample standard deviation, ddof 1) over n seeds of the last epoch's test accuracy.",
        "Against kd: difference from kd with the same seed. Best epoch: chosen on the test set, so it is not a result.",
    ]
    return lines + ([f"Not a full run: {results.budget_note}."] if results.budget_note else [])


def markdown(results: ExperimentResults) -> str:
    """Format the table with its title and notes as Markdown."""
    lines = [f"# {results.title}", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {' | '.join(row)} |" for row in rows(results)]
    return "\n".join([*lines, "", *notes(results), ""])
