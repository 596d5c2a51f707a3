"""Comparison of records with a committed baseline. Never imports torch, except to count models.

A metric has drifted when its mean differs from the baseline's by more than its tolerance: the larger of a floor and k
pooled standard errors, sqrt(std1^2 / n1 + std2^2 / n2). With k = 0 the floor alone counts. That holds for the loss of
the first step of training, which no rounding error of earlier steps affects. It depends on the teacher's weights, so a
baseline for several processors needs teachers from files. A missing value counts as drift, and so do other settings,
another dataset or teacher, fewer seeds, and a record that was edited. Parameters and FLOPs must be equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdflow.config import Settings
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.paper.cells import CellRecord, CellStatus, CellStatuses, make_cell_record
from kdflow.paper.paper import Paper
from kdflow.training import record
from kdflow.training.record import MeanStd, RunRecord

METRICS = ("top1", "top5", "agreement", "loss", "first_step_loss")

Verdict = Literal["ok", "drift", "missing"]


class Tolerance(Settings):
    """A metric's floor, absolute (percentage points) or relative to the baseline, and its number of pooled errors."""

    floor: Annotated[float, Field(ge=0, le=1e6)]
    relative: bool
    k: Annotated[float, Field(ge=0, le=1e6)]


TOLERANCES = {
    "top1": Tolerance(floor=0.5, relative=False, k=3.0),
    "top5": Tolerance(floor=0.5, relative=False, k=3.0),
    "agreement": Tolerance(floor=0.5, relative=False, k=3.0),
    "loss": Tolerance(floor=0.02, relative=True, k=3.0),
    "first_step_loss": Tolerance(floor=1e-4, relative=True, k=0.0),
}


class BaselineCell(Settings):
    """A cell when the baseline was made."""

    settings_sha256: str
    dataset_sha256: str
    teacher_sha256: str | None
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    budget_note: str
    metrics: dict[str, MeanStd]


class Baseline(Settings):
    """The values that records are compared with; `costs` maps dataset and model to parameters and FLOPs."""

    tolerances: dict[str, Tolerance]
    cells: dict[str, BaselineCell]
    costs: dict[str, tuple[int, int]]

    @model_validator(mode="after")
    def _check_tolerances(self) -> Baseline:
        missing = {metric for cell in self.cells.values() for metric in cell.metrics} - set(self.tolerances)
        if missing:
            raise ValueError(f"tolerances: {', '.join(sorted(missing))} not given")
        return self


@dataclass(frozen=True)
class Finding:
    """One comparison: `field` is a metric of a cell, or a property of the cell as a whole."""

    cell: str
    field: str
    expected: str
    found: str
    tolerance: float | None
    status: Verdict


def compare(paper: Paper, baseline: Baseline, only: Sequence[str] = ()) -> list[Finding]:
    """Return all comparisons with a baseline, or only those of some cells."""
    statuses, findings = CellStatuses(paper), list[Finding]()
    for name, expected in baseline.cells.items():
        if not only or name in only:
            findings += _compare_cell(paper, statuses, name, expected, baseline.tolerances)
    if not only:
        costs = _count_costs(paper)
        for name, numbers in baseline.costs.items():
            cost = costs.get(name)
            verdict: Verdict = "missing" if cost is None else "ok" if cost == numbers else "drift"
            findings.append(Finding(name, "parameters, FLOPs", str(numbers), str(cost or "none"), 0.0, verdict))
    return findings


def _compare_cell(
    paper: Paper, statuses: CellStatuses, name: str, expected: BaselineCell, tolerances: dict[str, Tolerance]
) -> list[Finding]:
    if name not in paper.cells:
        return [_difference(name, "cell", "present", "not in the tables", "missing")]
    try:
        status, runs = statuses(name), statuses.runs(name)
    except UserError as error:
        return [_difference(name, "record", "unchanged", error)]
    if status.record is None:
        return [_difference(name, "record", "present", "none", "missing")]
    findings = _compare_inputs(name, expected, status, status.record, runs)
    if status.status == "stale":
        return findings
    metrics = cell_metrics(paper, name, runs)
    for metric, before in expected.metrics.items():
        if metric not in metrics:
            findings.append(_difference(name, metric, before, "none", "missing"))
            continue
        allowed, current = tolerance(tolerances[metric], before, metrics[metric]), metrics[metric]
        verdict: Verdict = "ok" if abs(current.mean - before.mean) <= allowed else "drift"
        findings.append(Finding(name, metric, _format(before), _format(current), allowed, verdict))
    return findings


def _compare_inputs(
    name: str, expected: BaselineCell, status: CellStatus, cell_record: CellRecord, runs: list[RunRecord]
) -> list[Finding]:
    """Return the differences in status, seeds, settings, dataset and teacher."""
    findings, stale = list[Finding](), status.status == "stale"
    if stale:
        findings.append(_difference(name, "status", "done", f"stale: {status.reason}"))
    seeds = sorted(run.settings.seed for run in runs)
    if set(expected.seeds) - set(seeds) and not stale:
        findings.append(_difference(name, "seeds", list(expected.seeds), seeds, "missing"))
    settings = {run.settings_sha256 for run in runs if run.settings.seed == expected.seeds[0]}
    if settings and settings != {expected.settings_sha256}:
        findings.append(_difference(name, "settings", expected.settings_sha256[:12], settings.pop()[:12]))
    if cell_record.dataset_sha256 != expected.dataset_sha256:
        current = cell_record.dataset_sha256[:12]
        findings.append(_difference(name, "dataset", expected.dataset_sha256[:12], current))
    if cell_record.teacher_sha256 != expected.teacher_sha256:
        before, now = ((sha256 or "none")[:12] for sha256 in (expected.teacher_sha256, cell_record.teacher_sha256))
        findings.append(_difference(name, "teacher", before, now))
    return findings


def _difference(cell: str, field: str, expected: object, found: object, status: Verdict = "drift") -> Finding:
    return Finding(cell, field, str(expected), str(found), None, status)


def _format(value: MeanStd) -> str:
    return f"{value.mean:.6g}" + (f" ({value.std:.2g})" if value.std is not None else "") + f", n={value.n}"


def tolerance(allowed: Tolerance, before: MeanStd, current: MeanStd) -> float:
    """Return how far the current mean may be from the baseline's."""
    floor = allowed.floor * (abs(before.mean) if allowed.relative else 1.0)
    pooled = math.hypot(*((s.std or 0.0) / math.sqrt(max(1, s.n)) for s in (before, current)))
    return max(floor, allowed.k * pooled)


def cell_metrics(paper: Paper, name: str, runs: list[RunRecord]) -> dict[str, MeanStd]:
    """Return a cell's metrics over the records of its seeds; agreement only for methods with a teacher."""
    cell_record = make_cell_record(paper, name, runs)
    values = {metric: getattr(cell_record, metric) for metric in METRICS}
    return {metric: value for metric, value in values.items() if value is not None}


def _count_costs(paper: Paper) -> dict[str, tuple[int, int]]:
    from kdflow.models import cost

    counted = [model for item in paper.items.values() for model in item.counted_models(paper.recipes)]
    costs = {}
    for dataset in dict.fromkeys(dataset for dataset, _ in counted):
        models = dict.fromkeys(model for other, model in counted if other == dataset)
        experiment = paper.teacher_experiment(next(iter(paper.teachers)))  # any: only its recipes are used
        for row in cost.compare(experiment, dataset, list(models)):
            costs[f"{dataset}-{row.model}"] = (row.cost.params, row.cost.flops)
    return costs


def make_baseline(paper: Paper, names: Sequence[str], tolerances: dict[str, Tolerance]) -> Baseline:
    """Make a baseline from the records of cells that are done.

    Raises:
        UserError: a cell is not done.
    """
    statuses, cells = CellStatuses(paper), {}
    for name in names:
        status = statuses(name)
        if status.status != "done" or status.record is None:
            reason = f" ({status.reason})" if status.reason else ""
            raise UserError(f"{name}: {status.status}{reason}; only cells that are done can be a baseline")
        runs = statuses.runs(name)
        cells[name] = BaselineCell(
            settings_sha256=runs[0].settings_sha256,
            dataset_sha256=runs[0].dataset_sha256,
            teacher_sha256=runs[0].teacher_sha256,
            seeds=tuple(run.settings.seed for run in runs),
            budget_note=status.record.budget_note,
            metrics=cell_metrics(paper, name, runs),
        )
    return Baseline(tolerances=tolerances, cells=cells, costs=_count_costs(paper))


def read_baseline(file: Path) -> Baseline:
    """Read a baseline.

    Raises:
        UserError: the file is missing, or is not a baseline.
    """
    if not file.exists():
        raise UserError(f"{file}: no such baseline; `kdflow drift --update CELL...` makes it from the current records")
    return record.read_record(file, Baseline, hashed=False)


def write_baseline(file: Path, baseline: Baseline) -> None:
    """Write a baseline, which is to be committed."""
    files.write_text(file, baseline.model_dump_json(indent=1) + "\n")


def markdown(findings: Sequence[Finding]) -> str:
    """Format the findings that are not ok as a table for a pull request."""
    bad = [finding for finding in findings if finding.status != "ok"]
    cells = len({finding.cell for finding in findings})
    lines = ["### Metric drift", ""]
    if not bad:
        return "\n".join([*lines, f"None: {len(findings)} values of {cells} cells are within tolerance.", ""])
    lines += [f"{len(bad)} of {len(findings)} values have drifted or are missing.", ""]
    lines += ["| Cell | Field | Baseline | Now | Tolerance | |", "| --- | --- | --- | --- | ---: | --- |"]
    lines += [
        f"| {f.cell} | {f.field} | {f.expected} | {f.found} | {_format_tolerance(f.tolerance)} | {f.status} |"
        for f in bad
    ]
    return "\n".join([*lines, ""])


def terminal(findings: Sequence[Finding]) -> str:
    """Format each finding as a line; those that are not ok come last."""
    ordered = sorted(findings, key=lambda finding: finding.status != "ok")
    lines = [
        f"{f.status:7} {f.cell}: {f.field}: {f.expected} -> {f.found}"
        + (f", tolerance {_format_tolerance(f.tolerance)}" if f.tolerance is not None else "")
        for f in ordered
    ]
    bad = sum(finding.status != "ok" for finding in findings)
    return "\n".join([*lines, f"{bad} of {len(findings)} values have drifted or are missing", ""])


def _format_tolerance(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def as_json(findings: Sequence[Finding]) -> str:
    """Format all findings as JSON."""
    drifted = any(finding.status != "ok" for finding in findings)
    return json.dumps({"drift": drifted, "findings": [vars(finding) for finding in findings]}, indent=1)
