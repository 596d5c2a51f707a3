"""Comparisons of a paper's claims: paired differences of test accuracies, their intervals and verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from kdflow.paper.cells import CellStatuses, Status
from kdflow.paper.paper import Paper
from kdflow.paper.tables import Claim, ClaimTable, Comparison, Term
from kdflow.training.record import MeanStd, RunRecord, mean_std

CONFIDENCE = 0.95

Verdict = Literal["holds", "does not hold", "undecided"]


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
