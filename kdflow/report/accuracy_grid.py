"""The values of a paper's accuracy table, from records. A missing cell has a status and no value."""

from __future__ import annotations

from dataclasses import dataclass

from kdflow.paper.cells import CellStatuses, Status
from kdflow.paper.item import Metric
from kdflow.paper.paper import Paper
from kdflow.paper.tables import AccuracyRow, AccuracyTable
from kdflow.training.record import MeanStd, RunRecord, distinct_notes, mean_std

BASELINE = "kd"  # gains are differences from its records, never from the paper's values


@dataclass(frozen=True)
class Entry:
    """One value of a table beside the paper's, in percent.

    `cell` is the cell or teacher that it is measured on; `is_ranked` is False for teachers, which are neither best nor
    second best. `gain` is None for the baseline, and where no seed has both records.
    """

    row: str
    pair: str
    metric: Metric
    cell: str
    status: Status
    measured: MeanStd | None
    seeds_total: int
    gain: MeanStd | None
    paper: float | None
    paper_std: float | None
    quoted_from: str | None
    is_ranked: bool

    @property
    def difference(self) -> float | None:
        """The measured mean minus the paper's value."""
        return None if self.measured is None or self.paper is None else self.measured.mean - self.paper


@dataclass(frozen=True)
class Grid:
    """An accuracy table: entries by row, then by pair, then by metric."""

    name: str
    caption: str
    pairs: tuple[str, ...]
    metrics: tuple[Metric, ...]
    rows: dict[str, list[Entry]]
    notes: tuple[str, ...]
    budget_note: str

    @property
    def entries(self) -> list[Entry]:
        """All entries, row by row."""
        return [entry for row in self.rows.values() for entry in row]

    def rank(self, entry: Entry) -> int | None:
        """Return 1 for the best value of a column, 2 for the second best, else None; equal digits share a rank."""
        means = sorted(
            {
                round(e.measured.mean, 2)
                for e in self.entries
                if e.is_ranked and e.measured and (e.pair, e.metric) == (entry.pair, entry.metric)
            },
            reverse=True,
        )
        if not entry.is_ranked or entry.measured is None or len(means) < 2:
            return None
        place = means.index(round(entry.measured.mean, 2)) + 1
        return place if place <= 2 else None


def make_grid(paper: Paper, statuses: CellStatuses, name: str, table: AccuracyTable) -> Grid:
    """Fill an accuracy table from the records that exist."""
    budget_notes: set[str] = set()
    rows = {
        row.label: [
            _teacher_entry(paper, statuses, table, row, i, metric, budget_notes)
            if row.method is None
            else _student_entry(paper, statuses, table, row, i, metric, budget_notes)
            for i in range(len(table.pairs))
            for metric in table.metrics
        ]
        for row in table.rows
    }
    return Grid(
        name=name,
        caption=table.caption,
        pairs=tuple(_column(paper, pair) for pair in table.pairs),
        metrics=table.metrics,
        rows=rows,
        notes=table.notes,
        budget_note="; ".join(distinct_notes(budget_notes)),
    )


def _column(paper: Paper, pair: str) -> str:
    return f"{paper.recipes.pairs[pair].teacher} -> {paper.recipes.pairs[pair].student}"


def _teacher_entry(
    paper: Paper,
    statuses: CellStatuses,
    table: AccuracyTable,
    row: AccuracyRow,
    i: int,
    metric: Metric,
    budget_notes: set[str],
) -> Entry:
    pair = paper.recipes.pairs[table.pairs[i]]
    name = f"{table.dataset}-{pair.teacher}"
    teacher = statuses.teacher(name)
    if teacher is not None:
        budget_notes.add(teacher.budget_note)
    value, std = table.paper_value(row, pair, i, metric)
    return Entry(
        row=row.label,
        pair=_column(paper, table.pairs[i]),
        metric=metric,
        cell=name,
        status="missing" if teacher is None else "done",
        measured=None if teacher is None else mean_std([getattr(teacher.accuracy, metric)]),
        seeds_total=1,
        gain=None,
        paper=value,
        paper_std=std,
        quoted_from=row.quoted_from,
        is_ranked=False,
    )


def _student_entry(
    paper: Paper,
    statuses: CellStatuses,
    table: AccuracyTable,
    row: AccuracyRow,
    i: int,
    metric: Metric,
    budget_notes: set[str],
) -> Entry:
    assert row.method is not None
    name = paper.cell_name(table.cell(row.method, table.pairs[i], row.epochs))
    status, runs = statuses(name), statuses.runs(name)
    budget_notes.update(run.budget.budget_note for run in runs)
    value, std = table.paper_value(row, paper.recipes.pairs[table.pairs[i]], i, metric)
    return Entry(
        row=row.label,
        pair=_column(paper, table.pairs[i]),
        metric=metric,
        cell=name,
        status=status.status,
        measured=mean_std([getattr(run.final, metric) for run in runs]) if runs else None,
        seeds_total=status.seeds_total,
        gain=_gain(paper, statuses, table, i, name, runs, metric),
        paper=value,
        paper_std=std,
        quoted_from=row.quoted_from,
        is_ranked=True,
    )


def _gain(
    paper: Paper,
    statuses: CellStatuses,
    table: AccuracyTable,
    i: int,
    name: str,
    runs: list[RunRecord],
    metric: Metric,
) -> MeanStd | None:
    """Compare with KD at the dataset's default number of epochs, seed by seed: both trained on the same views."""
    try:
        baseline = paper.cell_name(table.cell(BASELINE, table.pairs[i]))
    except KeyError:  # no table or figure prints it
        return None
    if baseline == name:
        return None
    others = {run.settings.seed: run for run in statuses.runs(baseline)}
    both = [(run, others[run.settings.seed]) for run in runs if run.settings.seed in others]
    return mean_std([getattr(a.final, metric) - getattr(b.final, metric) for a, b in both]) if both else None
