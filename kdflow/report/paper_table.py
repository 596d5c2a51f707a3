"""A table of results in the forms that people print it in."""

from __future__ import annotations

import csv
import json
from io import StringIO

from kdflow.report.paper_grid import Entry, Grid
from kdflow.training.record import MeanStd

METHOD_NOTE = (
    "Mean (sample standard deviation, ddof 1) over n seeds of the last epoch's test accuracy, in percent. "
    "Gain: over our own KD at the default number of epochs, the same seeds."
)


def figure(entry: Entry) -> str:
    """Ours as it is printed, or what is the matter with it."""
    if entry.ours is None:
        return entry.status
    some = f" n={entry.ours.n}" if entry.status == "partial" else ""
    return f"{entry.ours}{some}"


def paper_text(entry: Entry) -> str:
    """The paper's figure and the difference, as far as there are any."""
    if entry.paper is None:
        return ""
    std = f" ({entry.paper_std:.2f})" if entry.paper_std is not None else ""
    mark = "*" if entry.quoted else ""
    difference = f", {entry.difference:+.2f}" if entry.difference is not None else ""
    return f"{entry.paper:.2f}{std}{mark}{difference}"


def column_names(grid: Grid) -> list[str]:
    """The columns after the first: pairs, with the metric where there are several."""
    several = len(grid.metrics) > 1
    return [f"{pair}, {metric}" if several else pair for pair in grid.pairs for metric in grid.metrics]


def notes(grid: Grid) -> list[str]:
    """What a reader must know to read the table."""
    sources = sorted({entry.quoted for entry in grid.entries if entry.quoted})
    missing = sum(entry.ours is None for entry in grid.entries)
    lines = [METHOD_NOTE, *(f"* quoted by the paper from: {source}." for source in sources), *grid.notes]
    lines += [f"{missing} of {len(grid.entries)} figures are missing or stale."] if missing else []
    return lines + ([f"Not a full run: {grid.budget_note}."] if grid.budget_note else [])


def all_formats(grid: Grid) -> dict[str, str]:
    """Markdown, LaTeX, CSV and JSON, by file suffix."""
    return {"md": markdown(grid), "tex": latex(grid), "csv": as_csv(grid), "json": as_json(grid)}


def markdown(grid: Grid) -> str:
    """The table as the paper prints it, best bold and second underlined, then every figure beside the paper's."""
    marks = {1: "**{}**", 2: "<u>{}</u>", None: "{}"}
    lines = [f"# {grid.name}: {grid.caption}", "", f"| | {' | '.join(column_names(grid))} |"]
    lines += [f"| --- |{' ---: |' * len(column_names(grid))}"]
    lines += [
        f"| {label} | {' | '.join(marks[grid.rank(e)].format(figure(e)) for e in entries)} |"
        for label, entries in grid.rows.items()
    ]
    lines += [
        "",
        "| | Pair | | Ours | n | Gain | Paper, difference |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {e.row} | {e.pair} | {e.metric} | {figure(e)} | {e.ours.n if e.ours else 0} of {e.of} | "
        f"{e.gain.signed if e.gain else ''} | {paper_text(e)} |"
        for e in grid.entries
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(grid)), ""])


def latex(grid: Grid) -> str:
    """A booktabs table, best bold and second underlined, what is missing as a dash."""
    marks = {1: r"\textbf{{{}}}", 2: r"\underline{{{}}}", None: "{}"}
    columns = "l" + "c" * len(column_names(grid))
    lines = [*(f"% {note}" for note in notes(grid)), rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [" & ".join(["", *map(_escaped, column_names(grid))]) + r" \\", r"\midrule"]
    for label, entries in grid.rows.items():
        shown = [marks[grid.rank(e)].format(figure(e) if e.ours else "--") for e in entries]
        lines.append(" & ".join([_escaped(label), *shown]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    for character in "\\&%$#_{}":
        text = text.replace(character, rf"\{character}")
    return text.replace("->", r"$\to$")


def to_records(grid: Grid) -> list[dict[str, str | float | int | None]]:
    """A row per figure, every digit."""
    none = MeanStd(mean=0.0, std=None, n=0)
    return [
        {
            "row": e.row,
            "pair": e.pair,
            "metric": e.metric,
            "status": e.status,
            "mean": e.ours.mean if e.ours else None,
            "std": (e.ours or none).std,
            "n": (e.ours or none).n,
            "of": e.of,
            "gain": e.gain.mean if e.gain else None,
            "gain_std": (e.gain or none).std,
            "paper": e.paper,
            "paper_std": e.paper_std,
            "difference": e.difference,
            "quoted": e.quoted,
            "not_a_full_run": grid.budget_note or None,
            "name": e.name,
        }
        for e in grid.entries
    ]


def as_csv(grid: Grid) -> str:
    """`long` as CSV."""
    text = StringIO()
    rows = to_records(grid)
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(grid: Grid) -> str:
    """`long` with caption, budget and notes as JSON."""
    content = {
        "table": grid.name,
        "caption": grid.caption,
        "not_a_full_run": grid.budget_note or None,
        "notes": notes(grid),
    }
    return json.dumps({**content, "figures": to_records(grid)}, indent=1) + "\n"


def metrics(grid: Grid) -> str:
    """The means and deviations as DVC's metrics."""
    found: dict[str, dict[str, float | None]] = {}
    for e in grid.entries:
        key = e.name if e.metric == "top1" else f"{e.name}-{e.metric}"
        if e.ours is not None:
            found[key] = {"mean": e.ours.mean, "std": e.ours.std, "n": e.ours.n}
    return json.dumps(found, indent=1) + "\n"
