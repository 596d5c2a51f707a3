"""A paper's tables of results, from records: what is there is shown, what is missing is said to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdflow.paper.cells import CELLS, TEACHERS, CellStatuses, Status
from kdflow.paper.paper import Paper
from kdflow.paper.tables import AccuracyRow, AccuracyTable, Metric, paper_accuracy
from kdflow.training.record import MeanStd, RunRecord, mean_std

BASELINE = "kd"  # gains are against our own KD, never against a figure of the paper


@dataclass(frozen=True)
class Entry:
    """One figure of a table: ours, the paper's, and where ours comes from. Percent."""

    row: str
    pair: str
    metric: Metric
    name: str  # of the cell or teacher
    status: Status
    ours: MeanStd | None
    of: int
    gain: MeanStd | None
    paper: float | None
    paper_std: float | None
    quoted: str | None
    ranked: bool  # stands for best and second best

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.ours is None or self.paper is None else self.ours.mean - self.paper


@dataclass(frozen=True)
class Grid:
    """A table of results: entries by row, then pair, then metric."""

    name: str
    caption: str
    pairs: tuple[str, ...]
    metrics: tuple[Metric, ...]
    rows: dict[str, list[Entry]]
    notes: tuple[str, ...]
    budget_note: str

    @property
    def entries(self) -> list[Entry]:
        """All of them, row by row."""
        return [entry for row in self.rows.values() for entry in row]

    def rank(self, entry: Entry) -> int | None:
        """1 for the best of the column, 2 for the second; none for teachers and where there is nothing to compare."""
        means = sorted(
            {
                round(e.ours.mean, 2)
                for e in self.entries
                if e.ranked and e.ours and (e.pair, e.metric) == (entry.pair, entry.metric)
            },
            reverse=True,
        )
        if not entry.ranked or entry.ours is None or len(means) < 2:
            return None
        place = means.index(round(entry.ours.mean, 2)) + 1
        return place if place <= 2 else None


def grid(paper: Paper, states: CellStatuses, name: str, table: AccuracyTable) -> Grid:
    """A table of results as its records have it."""
    budget_notes: set[str] = set()
    rows = {
        row.label: [
            _entry(paper, states, table, row, i, metric, budget_notes)
            for i in range(len(table.pairs))
            for metric in table.metrics
        ]
        for row in table.rows
    }
    pairs = tuple(paper.recipes.pairs[pair] for pair in table.pairs)
    return Grid(
        name=name,
        caption=table.caption,
        pairs=tuple(f"{pair.teacher} -> {pair.student}" for pair in pairs),
        metrics=table.metrics,
        rows=rows,
        notes=table.notes,
        budget_note="; ".join(sorted(budget_notes - {""})),
    )


def _entry(
    paper: Paper,
    states: CellStatuses,
    table: AccuracyTable,
    row: AccuracyRow,
    i: int,
    metric: Metric,
    budget_notes: set[str],
) -> Entry:
    pair = paper.recipes.pairs[table.pairs[i]]
    column = f"{pair.teacher} -> {pair.student}"
    if row.method is None:
        name = f"{table.dataset}-{pair.teacher}"
        found = states.teacher(name)
        if found is not None:
            budget_notes.add(f"teacher: {found[1]}" if found[1] else "")
        ours = None if found is None else mean_std([getattr(found[0].accuracy, metric)])
        said = paper_accuracy(pair, table.dataset, "teacher", metric)
        status: Status = "missing" if found is None else "done"
        return Entry(row.label, column, metric, name, status, ours, 1, None, said, None, row.quoted, ranked=False)
    name = paper.cell(table.dataset, table.pairs[i], row.method, row.epochs)
    state, runs = states(name), states.runs(name)
    budget_notes.update(run.budget.budget_note for run in runs)
    values = None if row.paper is None else getattr(row.paper, metric)
    std = row.paper.std if row.paper is not None and metric == "top1" else None
    printed = values[i] if values is not None else None
    if row.method == "ce" and row.paper is None:
        printed = paper_accuracy(pair, table.dataset, "student", metric)
    return Entry(
        row=row.label,
        pair=column,
        metric=metric,
        name=name,
        status=state.status,
        ours=mean_std([getattr(run.final, metric) for run in runs]) if runs else None,
        of=state.of,
        gain=_gain(paper, states, table, i, name, runs, metric),
        paper=printed,
        paper_std=std[i] if std is not None else None,
        quoted=row.quoted,
        ranked=True,
    )


def _gain(
    paper: Paper, states: CellStatuses, table: AccuracyTable, i: int, name: str, runs: list[RunRecord], metric: Metric
) -> MeanStd | None:
    """Over KD at the dataset's own number of epochs, seed by seed: both saw the same views."""
    try:
        baseline = paper.cell(table.dataset, table.pairs[i], BASELINE)
    except KeyError:  # no part prints it
        return None
    if baseline == name:
        return None
    others = {run.settings.seed: run for run in states.runs(baseline)}
    both = [(run, others[run.settings.seed]) for run in runs if run.settings.seed in others]
    return mean_std([getattr(a.final, metric) - getattr(b.final, metric) for a, b in both]) if both else None


def command(paper: Paper, name: str) -> str:
    """What makes a cell, teacher, table or figure."""
    kind = "cell@" if name in paper.cells else "teacher@" if name in paper.teachers else ""
    return f"dvc repro {paper.folder.as_posix()}/dvc.yaml:{kind}{name}"


def place(paper: Paper, name: str) -> Path:
    """Where a cell or teacher lies."""
    return paper.data / (CELLS if name in paper.cells else TEACHERS) / name
