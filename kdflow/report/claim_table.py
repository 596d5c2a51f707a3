"""A paper's table of claims, each with a verdict from paired differences of test accuracies, and its figure."""

from __future__ import annotations

import json
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

from kdflow.core import files
from kdflow.paper.cells import CellStatuses
from kdflow.paper.paper import Paper
from kdflow.paper.tables import ClaimTable
from kdflow.report import claim_figure
from kdflow.report.claims import CONFIDENCE, ClaimResult, Result, claim_results
from kdflow.report.paper_figure import save_figure
from kdflow.report.paper_item import ItemView, TableCell
from kdflow.training.record import budget_note

COLUMNS = ["Difference", f"{CONFIDENCE:.0%} interval", "n", "p", "p, Holm", "Verdict"]
NOTE = (
    "Difference: of test accuracies after the last epoch, in percentage points, mean (sample standard deviation) over "
    f"n seeds; both sides have the same seeds. Interval: {CONFIDENCE:.0%}, Student's t for paired differences. p: "
    "two-sided, of no difference; Holm: corrected for all comparisons of the table. A claim holds if the intervals of "
    "all its comparisons are above zero, does not hold if one is below zero, and is undecided otherwise."
)


def write(paper: Paper, statuses: CellStatuses, name: str, item: ClaimTable, out: Path) -> None:
    """Write the table as Markdown and JSON, and its figure as svg, to `out`."""
    shown = view(paper, statuses, name, item)
    for suffix, content in shown.formats.items():
        files.write_text(out / f"table.{suffix}", content)
    if shown.svg:
        files.write_bytes(out / "figure.svg", shown.svg)


def view(paper: Paper, statuses: CellStatuses, name: str, item: ClaimTable) -> ItemView:
    """Return the table, a row for each claim with its verdict, then its comparisons; and its figure, if it has data."""
    claims = claim_results(paper, statuses, item)
    rows: dict[str, list[TableCell]] = {}
    for i, one in enumerate(claims, 1):
        status = max((result.status for result in one.results), key=["done", "partial", "missing"].index)
        texts = [""] * (len(COLUMNS) - 1) + [one.verdict if status != "missing" else "missing"]
        rows[f"{i}. {one.claim.claim} ({one.claim.source})"] = [TableCell(text, status) for text in texts]
        for result in one.results:
            rows[result.label] = [TableCell(text, result.status) for text in format_result(result)]
    runs = [run for cell in paper.cells_of(name) for run in statuses.runs(cell)]
    notes = [NOTE, f"{sum(len(one.results) for one in claims)} comparisons.", *item.notes]
    notes += [f"Claim {i}: {one.claim.comment}" for i, one in enumerate(claims, 1) if one.claim.comment]
    notes += [f"Not a full run: {budget_note(runs)}."] if budget_note(runs) else []
    content = {"table": name, "notes": notes, "claims": [_as_json(one) for one in claims]}
    formats = {"md": _markdown(name, item, rows, notes), "json": json.dumps(content, indent=1) + "\n"}
    svg = BytesIO()
    if any(result.low is not None for one in claims for result in one.results):
        save_figure([run.budget.budget_note for run in runs], lambda: claim_figure.draw(claims), svg, "svg")
    return ItemView(notes, COLUMNS, rows, svg.getvalue(), formats)


def format_result(result: Result) -> list[str]:
    """Format the columns of a comparison."""
    if result.difference is None:
        return ["", "", "0", "", "", "missing"]
    interval = "" if result.low is None else f"{result.low:+.2f} to {result.high:+.2f}"
    n, p = str(result.difference.n), ["" if p is None else f"{p:.2g}" for p in (result.p, result.p_holm)]
    return [result.difference.signed, interval, n, *p, result.verdict]


def _markdown(name: str, item: ClaimTable, rows: dict[str, list[TableCell]], notes: list[str]) -> str:
    lines = [f"# {name}: {item.caption}", "", f"| | {' | '.join(COLUMNS)} |", f"| --- |{' ---: |' * len(COLUMNS)}"]
    lines += [f"| {label} | {' | '.join(cell.text for cell in cells)} |" for label, cells in rows.items()]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def _as_json(one: ClaimResult) -> dict[str, object]:
    comparisons = [
        asdict(result) | {"difference": result.difference and dict(result.difference), "verdict": result.verdict}
        for result in one.results
    ]
    return {"claim": one.claim.claim, "source": one.claim.source, "verdict": one.verdict, "comparisons": comparisons}
