"""A paper's table of test accuracies, in the formats that it is printed in."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path

from kdflow.core import files
from kdflow.paper.cells import CellStatuses
from kdflow.paper.paper import Paper
from kdflow.paper.tables import AccuracyTable
from kdflow.report.accuracy_grid import Entry, Grid, make_grid
from kdflow.report.paper_item import ItemView, TableCell
from kdflow.training.record import MeanStd

METHOD_NOTE = (
    "Mean (sample standard deviation, ddof 1) over n seeds of the last epoch's test accuracy, in percent. "
    "Gain: difference from KD at the default number of epochs, measured with the same seeds."
)


def write(paper: Paper, statuses: CellStatuses, name: str, item: AccuracyTable, out: Path) -> None:
    """Write the table in all text formats to `out`, and its means to metrics/ beside it."""
    grid = make_grid(paper, statuses, name, item)
    for suffix, content in all_formats(grid).items():
        files.write_text(out / f"table.{suffix}", content)
    files.write_text(out.parent / "metrics" / f"{name}.json", dvc_metrics(grid))


def view(paper: Paper, statuses: CellStatuses, name: str, item: AccuracyTable) -> ItemView:
    """Return the table with the paper's values and the gains below the measured ones."""
    grid = make_grid(paper, statuses, name, item)
    rows = {label: [_table_cell(grid, entry) for entry in entries] for label, entries in grid.rows.items()}
    return ItemView(notes(grid), column_names(grid), rows, formats=all_formats(grid))


def _table_cell(grid: Grid, entry: Entry) -> TableCell:
    details = [f"paper {paper_text(entry)}"] if entry.paper is not None else []
    details += [f"gain {entry.gain.signed}"] if entry.gain else []
    return TableCell(measured_text(entry), entry.status, tuple(details), grid.rank(entry), entry.cell)


def measured_text(entry: Entry) -> str:
    """Format the measured value, or the status if there is none."""
    if entry.measured is None:
        return entry.status
    n = f" n={entry.measured.n}" if entry.status == "partial" else ""
    return f"{entry.measured}{n}"


def paper_text(entry: Entry) -> str:
    """Format the paper's value and the difference from it; empty if the paper prints none."""
    if entry.paper is None:
        return ""
    std = f" ({entry.paper_std:.2f})" if entry.paper_std is not None else ""
    mark = "*" if entry.quoted_from else ""
    difference = f", {entry.difference:+.2f}" if entry.difference is not None else ""
    return f"{entry.paper:.2f}{std}{mark}{difference}"


def column_names(grid: Grid) -> list[str]:
    """Return the names of the columns after the first: pairs, with the metric if there are several."""
    several = len(grid.metrics) > 1
    return [f"{pair}, {metric}" if several else pair for pair in grid.pairs for metric in grid.metrics]


def notes(grid: Grid) -> list[str]:
    """Return the notes below the table."""
    sources = sorted({entry.quoted_from for entry in grid.entries if entry.quoted_from})
    missing = sum(entry.measured is None for entry in grid.entries)
    lines = [METHOD_NOTE, *(f"* quoted by the paper from: {source}." for source in sources), *grid.notes]
    lines += [f"{missing} of {len(grid.entries)} values are missing or stale."] if missing else []
    return lines + ([f"Not a full run: {grid.budget_note}."] if grid.budget_note else [])


def all_formats(grid: Grid) -> dict[str, str]:
    """Return the table as Markdown, LaTeX, CSV and JSON, by file suffix."""
    return {"md": markdown(grid), "tex": latex(grid), "csv": as_csv(grid), "json": as_json(grid)}


def markdown(grid: Grid) -> str:
    """Format the table as in the paper, best bold and second best underlined, then each value beside the paper's."""
    marks = {1: "**{}**", 2: "<u>{}</u>", None: "{}"}
    lines = [f"# {grid.name}: {grid.caption}", "", f"| | {' | '.join(column_names(grid))} |"]
    lines += [f"| --- |{' ---: |' * len(column_names(grid))}"]
    lines += [
        f"| {label} | {' | '.join(marks[grid.rank(e)].format(measured_text(e)) for e in entries)} |"
        for label, entries in grid.rows.items()
    ]
    lines += [
        "",
        "| | Pair | | kdflow | n | Gain | Paper, difference |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {e.row} | {e.pair} | {e.metric} | {measured_text(e)} | {e.measured.n if e.measured else 0} of "
        f"{e.seeds_total} | {e.gain.signed if e.gain else ''} | {paper_text(e)} |"
        for e in grid.entries
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(grid)), ""])


def latex(grid: Grid) -> str:
    """Format the table for booktabs, best bold and second best underlined, missing values as a dash."""
    marks = {1: r"\textbf{{{}}}", 2: r"\underline{{{}}}", None: "{}"}
    columns = "l" + "c" * len(column_names(grid))
    lines = [*(f"% {note}" for note in notes(grid)), rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [" & ".join(["", *map(_escape, column_names(grid))]) + r" \\", r"\midrule"]
    for label, entries in grid.rows.items():
        values = [marks[grid.rank(e)].format(measured_text(e) if e.measured else "--") for e in entries]
        lines.append(" & ".join([_escape(label), *values]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _escape(text: str) -> str:
    for character in "\\&%$#_{}":
        text = text.replace(character, rf"\{character}")
    return text.replace("->", r"$\to$")


def to_records(grid: Grid) -> list[dict[str, str | float | int | None]]:
    """Return one record for each value, unrounded."""
    none = MeanStd(mean=0.0, std=None, n=0)
    return [
        {
            "row": e.row,
            "pair": e.pair,
            "metric": e.metric,
            "status": e.status,
            "mean": e.measured.mean if e.measured else None,
            "std": (e.measured or none).std,
            "n": (e.measured or none).n,
            "seeds_total": e.seeds_total,
            "gain": e.gain.mean if e.gain else None,
            "gain_std": (e.gain or none).std,
            "paper": e.paper,
            "paper_std": e.paper_std,
            "difference": e.difference,
            "quoted_from": e.quoted_from,
            "budget_note": grid.budget_note or None,
            "cell": e.cell,
        }
        for e in grid.entries
    ]


def as_csv(grid: Grid) -> str:
    """Format the records as CSV."""
    text = StringIO()
    records = to_records(grid)
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def as_json(grid: Grid) -> str:
    """Format the records with caption, budget and notes as JSON."""
    content = {
        "table": grid.name,
        "caption": grid.caption,
        "budget_note": grid.budget_note or None,
        "notes": notes(grid),
    }
    return json.dumps({**content, "values": to_records(grid)}, indent=1) + "\n"


def dvc_metrics(grid: Grid) -> str:
    """Format means and standard deviations as DVC's metrics."""
    metrics: dict[str, dict[str, float | None]] = {}
    for e in grid.entries:
        key = e.cell if e.metric == "top1" else f"{e.cell}-{e.metric}"
        if e.measured is not None:
            metrics[key] = {"mean": e.measured.mean, "std": e.measured.std, "n": e.measured.n}
    return json.dumps(metrics, indent=1) + "\n"
