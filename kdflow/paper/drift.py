"""Have the numbers moved? Records against a baseline that is committed. Never imports torch, unless to count models.

A figure has drifted when it is further from the baseline's than the larger of a floor, its metric's, and k pooled
standard errors: sqrt(std1^2 / n1 + std2^2 / n2). Where k is 0 the floor alone counts: the loss of a run's very first
step depends on no rounding that training has grown; with a teacher of other weights it is held to what `loss` is. What
is missing has drifted; so have other settings, another dataset, fewer seeds, and a record that is not the one that was
made. Parameters and FLOPs must be equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from kdflow.config import Settings
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.paper.cells import CellStatuses, make_cell_record
from kdflow.paper.paper import Paper
from kdflow.paper.tables import CostTable
from kdflow.training import record
from kdflow.training.record import MeanStd

METRICS = ("top1", "top5", "agreement", "loss", "first_step_loss")


class Tolerance(Settings):
    """Of a metric: a floor, absolute (percentage points) or relative to the baseline, and how many pooled errors."""

    floor: Annotated[float, Field(ge=0)]
    relative: bool
    k: Annotated[float, Field(ge=0)]


TOLERANCES = {
    "top1": Tolerance(floor=0.5, relative=False, k=3.0),
    "top5": Tolerance(floor=0.5, relative=False, k=3.0),
    "agreement": Tolerance(floor=0.5, relative=False, k=3.0),
    "loss": Tolerance(floor=0.02, relative=True, k=3.0),
    "first_step_loss": Tolerance(floor=1e-4, relative=True, k=0.0),
}


class Expected(Settings):
    """A cell as it was when the baseline was made."""

    settings_sha256: str
    dataset_sha256: str
    teacher_sha256: str | None
    seeds: tuple[int, ...]
    budget_note: str
    figures: dict[str, MeanStd]


class Baseline(Settings):
    """What records are held against; `costs` are parameters and FLOPs by dataset and model."""

    tolerances: dict[str, Tolerance]
    cells: dict[str, Expected]
    costs: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Finding:
    """One comparison: a metric of a cell, or what is wrong with the cell as a whole."""

    cell: str
    what: str
    expected: str
    found: str
    tolerance: float | None
    status: Literal["ok", "drift", "missing"]


def compare(paper: Paper, baseline: Baseline, only: Sequence[str] = ()) -> list[Finding]:
    """All comparisons of a baseline, or of some of its cells."""
    states, findings = CellStatuses(paper), list[Finding]()
    for name, expected in baseline.cells.items():
        if not only or name in only:
            findings += _cell(paper, states, name, expected, baseline.tolerances)
    if not only:
        found = _costs(paper)
        for name, numbers in baseline.costs.items():
            ours = found.get(name)
            status: Literal["ok", "drift", "missing"] = (
                "missing" if ours is None else "ok" if ours == numbers else "drift"
            )
            findings.append(Finding(name, "parameters, FLOPs", str(numbers), str(ours or "none"), 0.0, status))
    return findings


def _cell(
    paper: Paper, states: CellStatuses, name: str, expected: Expected, tolerances: dict[str, Tolerance]
) -> list[Finding]:
    def wrong(what: str, before: object, now: object, status: Literal["drift", "missing"] = "drift") -> Finding:
        return Finding(name, what, str(before), str(now), None, status)

    if name not in paper.cells:
        return [wrong("cell", "there", "not in the tables", "missing")]
    state = states(name)
    if state.record is None:
        return [wrong("record", "there", "none", "missing")]
    try:
        runs = states.runs(name)
    except UserError as error:
        return [wrong("record", "as it was made", error)]
    findings = [wrong("state", "done", state.why)] if state.status == "stale" else []
    seeds, first = tuple(sorted(run.settings.seed for run in runs)), {run.settings.seed: run for run in runs}
    if set(expected.seeds) - set(seeds) and state.status != "stale":
        findings.append(wrong("seeds", list(expected.seeds), list(seeds), "missing"))
    settings = {run.settings_sha256 for seed, run in first.items() if seed == expected.seeds[0]}
    if settings and settings != {expected.settings_sha256}:
        findings.append(wrong("settings", expected.settings_sha256[:12], settings.pop()[:12]))
    if state.record.dataset_sha256 != expected.dataset_sha256:
        findings.append(wrong("dataset", expected.dataset_sha256[:12], state.record.dataset_sha256[:12]))
    if state.status == "stale":
        return findings
    now = metrics(paper, name, states)
    for metric, before in expected.figures.items():
        if metric not in now:
            findings.append(wrong(metric, before, "none", "missing"))
            continue
        # A teacher that was trained on another processor is another one, and so is all that a student hears from it.
        same_teacher = state.record.teacher_sha256 == expected.teacher_sha256
        kind = metric if same_teacher or metric != "first_step_loss" else "loss"
        allowed = tolerance(tolerances[kind], before, now[metric])
        status: Literal["ok", "drift"] = "ok" if abs(now[metric].mean - before.mean) <= allowed else "drift"
        findings.append(Finding(name, metric, _told(before), _told(now[metric]), allowed, status))
    return findings


def _told(value: MeanStd) -> str:
    return f"{value.mean:.6g}" + (f" ({value.std:.2g})" if value.std is not None else "") + f", n={value.n}"


def tolerance(allowed: Tolerance, before: MeanStd, now: MeanStd) -> float:
    """How far a mean may be from the baseline's."""
    floor = allowed.floor * (abs(before.mean) if allowed.relative else 1.0)
    pooled = math.sqrt(sum((s.std or 0.0) ** 2 / s.n for s in (before, now)))
    return max(floor, allowed.k * pooled)


def metrics(paper: Paper, name: str, states: CellStatuses) -> dict[str, MeanStd]:
    """A cell's figures, from its records alone."""
    made = make_cell_record(paper, name, states.runs(name))
    found = {metric: getattr(made, metric) for metric in METRICS}
    return {metric: value for metric, value in found.items() if value is not None}


def _costs(paper: Paper) -> dict[str, tuple[int, int]]:
    from kdflow.models import cost

    found = {}
    for part in paper.parts.values():
        if isinstance(part, CostTable):
            models = dict.fromkeys(
                model
                for pair in part.pairs
                for model in (paper.recipes.pairs[pair].teacher, paper.recipes.pairs[pair].student)
            )
            experiment = paper.teacher_experiment(next(iter(paper.teachers)))
            for row in cost.compare(experiment, part.dataset, list(models)):
                found[f"{part.dataset}-{row.model}"] = (row.cost.params, row.cost.flops)
    return found


def make_baseline(paper: Paper, names: Sequence[str], tolerances: dict[str, Tolerance]) -> Baseline:
    """A baseline of what is there now.

    Raises:
        UserError: a cell is not done.
    """
    states, cells = CellStatuses(paper), {}
    for name in names:
        state = states(name)
        if state.status != "done" or state.record is None:
            raise UserError(
                f"{name}: {state.status}{state.why and ', ' + state.why}; a baseline is made of what is done"
            )
        runs = states.runs(name)
        cells[name] = Expected(
            settings_sha256=runs[0].settings_sha256,
            dataset_sha256=runs[0].dataset_sha256,
            teacher_sha256=runs[0].teacher_sha256,
            seeds=tuple(run.settings.seed for run in runs),
            budget_note=state.record.budget_note,
            figures=metrics(paper, name, states),
        )
    return Baseline(tolerances=tolerances, cells=cells, costs=_costs(paper))


def read_baseline(file: Path) -> Baseline:
    """Read a baseline.

    Raises:
        UserError: it is not there, or is none.
    """
    if not file.exists():
        raise UserError(f"{file}: no such baseline; `kdflow drift --update CELL...` makes it of what is there")
    return record.read_record(file, Baseline)


def write_baseline(file: Path, baseline: Baseline) -> None:
    """Write a baseline, to be committed."""
    files.write_text(file, baseline.model_dump_json(indent=1) + "\n")


def markdown(findings: Sequence[Finding]) -> str:
    """A table for a pull request: what is wrong, and how much is not."""
    bad = [finding for finding in findings if finding.status != "ok"]
    cells = len({finding.cell for finding in findings})
    lines = ["### Metric drift", ""]
    if not bad:
        return "\n".join([*lines, f"None: {len(findings)} figures of {cells} cells are where they were.", ""])
    lines += [f"{len(bad)} of {len(findings)} figures have moved or are missing.", ""]
    lines += ["| Cell | What | Baseline | Now | Tolerance | |", "| --- | --- | --- | --- | ---: | --- |"]
    lines += [f"| {f.cell} | {f.what} | {f.expected} | {f.found} | {_shown(f.tolerance)} | {f.status} |" for f in bad]
    return "\n".join([*lines, ""])


def terminal(findings: Sequence[Finding]) -> str:
    """A line for each comparison, those that are wrong last."""
    ordered = sorted(findings, key=lambda finding: finding.status != "ok")
    lines = [
        f"{f.status:7} {f.cell}: {f.what}: {f.expected} -> {f.found}"
        + (f", tolerance {_shown(f.tolerance)}" if f.tolerance is not None else "")
        for f in ordered
    ]
    bad = sum(finding.status != "ok" for finding in findings)
    return "\n".join([*lines, f"{bad} of {len(findings)} figures have moved or are missing", ""])


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def as_json(findings: Sequence[Finding]) -> str:
    """All findings."""
    drifted = any(finding.status != "ok" for finding in findings)
    return json.dumps({"drift": drifted, "findings": [vars(finding) for finding in findings]}, indent=1)
