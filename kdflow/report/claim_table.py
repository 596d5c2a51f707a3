"""A paper's table of claims, each with a verdict from paired differences of test accuracies."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from kdflow.core import files
from kdflow.paper.cells import CellStatuses, Status
from kdflow.paper.paper import Paper
from kdflow.paper.tables import Claim, ClaimTable, Comparison, Term
from kdflow.report.paper_item import ItemView, TableCell
from kdflow.training.record import MeanStd, RunRecord, budget_note, mean_std

CONFIDENCE = 0.95

Verdict = Literal["holds", "does not hold", "undecided"]

COLUMNS = ["Difference", f"{CONFIDENCE:.0%} interval", "n", "p", "p, Holm", "Verdict"]
NOTE = (
    "Difference: of test accuracies after the last epoch, in percentage points, mean (sample standard deviation) over "
    f"n seeds; both sides have the same seeds. Interval: {CONFIDENCE:.0%}, Student's t for paired differences. p: "
    "two-sided, of no difference; Holm: corrected for all comparisons of the table. A claim holds if the intervals of "
    "all its comparisons are above zero, does not hold if one is below zero, and is undecided otherwise."
)


@dataclass(frozen=True)
class Result:
    """A comparison: its difference over seeds in percentage points; `low`, `high`, `p`, `p_holm` need two seeds."""

    label: str
    cells: tuple[str, ...]
    status: Status
    difference: MeanStd | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict of this comparison alone."""
        if self.low is not None and self.low > 0:
            return "holds"
        return "does not hold" if self.high is not None and self.high < 0 else "undecided"


@dataclass(frozen=True)
class ClaimResult:
    """A claim and its comparisons."""

    claim: Claim
    results: tuple[Result, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict of the claim."""
        verdicts = {result.verdict for result in self.results}
        if verdicts == {"holds"}:
            return "holds"
        return "does not hold" if "does not hold" in verdicts else "undecided"


def write(paper: Paper, statuses: CellStatuses, name: str, item: ClaimTable, out: Path) -> None:
    """Write the table as Markdown and JSON to `out`."""
    for suffix, content in view(paper, statuses, name, item).formats.items():
        files.write_text(out / f"table.{suffix}", content)


def view(paper: Paper, statuses: CellStatuses, name: str, item: ClaimTable) -> ItemView:
    """Return the table: a row for each claim with its verdict, then its comparisons."""
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
    return ItemView(notes, COLUMNS, rows, formats=formats)


def claim_results(paper: Paper, statuses: CellStatuses, item: ClaimTable) -> list[ClaimResult]:
    """Compute all comparisons from the records that exist."""
    claims = [[_compare(paper, statuses, item, one) for one in claim.comparisons] for claim in item.claims]
    corrected = iter(holm([result.p for results in claims for result in results]))
    return [
        ClaimResult(claim, tuple(replace(result, p_holm=next(corrected)) for result in results))
        for claim, results in zip(item.claims, claims, strict=True)
    ]


def _compare(paper: Paper, statuses: CellStatuses, item: ClaimTable, comparison: Comparison) -> Result:
    def runs_of(term: Term) -> dict[int, RunRecord]:
        return {run.settings.seed: run for run in statuses.runs(paper.cell_name(item.cell(term)))}

    plus, minus = [runs_of(term) for term in comparison.plus], [runs_of(term) for term in comparison.minus]
    seeds = sorted(set.intersection(*(set(runs) for runs in plus + minus)))
    differences = [
        math.fsum(runs[seed].final.top1 for runs in plus) - math.fsum(runs[seed].final.top1 for runs in minus)
        for seed in seeds
    ]
    cells = tuple(paper.cell_name(item.cell(term)) for term in (*comparison.plus, *comparison.minus))
    status: Status = "missing" if not seeds else "done" if len(seeds) >= item.seeds else "partial"
    return Result(comparison.label, cells, status, mean_std(differences) if seeds else None, *paired_t(differences))


def paired_t(differences: list[float]) -> tuple[float | None, float | None, float | None]:
    """Return the confidence interval of the mean, and the two-sided p of a mean of zero; None for less than two."""
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return None, None, None
    summary = mean_std(differences)
    assert summary.std is not None
    error = summary.std / math.sqrt(n)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = 2 * float(t.sf(abs(summary.mean) / error, n - 1)) if error else float(summary.mean == 0)
    return summary.mean - half, summary.mean + half, p


def holm(values: list[float | None]) -> list[float | None]:
    """Return p-values corrected by Holm's step-down method; None stays None and does not count."""
    order = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[i] = largest
    return corrected


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
