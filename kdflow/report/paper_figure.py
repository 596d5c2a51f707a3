"""The paper's figures of curves: test error against total epochs, and r along training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from kdflow.paper.cells import CellStatuses
from kdflow.paper.paper import Paper
from kdflow.paper.tables import Curve, EpochsFigure, PickRatioFigure
from kdflow.report.experiment_figure import COLOURS, save
from kdflow.training.record import budget_note, mean_std


@dataclass(frozen=True)
class Point:
    """A mean over n seeds at x: epochs in all, or the share of training that is done."""

    panel: str
    line: str
    x: float
    mean: float
    std: float | None
    n: int
    budget_note: str


def points(paper: Paper, states: CellStatuses, part: EpochsFigure | PickRatioFigure) -> list[Point]:
    """All points whose cells are there."""
    return _errors(paper, states, part) if isinstance(part, EpochsFigure) else _ratios(paper, states, part)


def _errors(paper: Paper, states: CellStatuses, part: EpochsFigure) -> list[Point]:
    found = []
    for panel, (pair, view) in panels(paper, part).items():
        for method in part.methods:
            for epochs in sorted(part.epochs):
                runs = states.runs(paper.cell(part.dataset, pair, method, epochs, view))
                if runs:
                    error = mean_std([100 - run.final.top1 for run in runs])
                    found.append(Point(panel, method, float(epochs), error.mean, error.std, error.n, budget_note(runs)))
    return found


def panels(paper: Paper, part: EpochsFigure) -> dict[str, tuple[str, Any]]:
    """Pair and base view of each panel."""
    several = len(part.pairs) > 1
    return {
        (f"{paper.recipes.pairs[pair].student}, " if several else "") + VIEWS[view]: (pair, view)
        for pair in part.pairs
        for view in part.base_views
    }


VIEWS = {"none": "no augmentation", "flip": "flip", "flip+crop": "flip and crop"}


def _ratios(paper: Paper, states: CellStatuses, part: PickRatioFigure) -> list[Point]:
    found = []
    for curve in part.curves:
        runs = states.runs(paper.cell(curve.dataset, curve.pair, part.method))
        for epoch in zip(*(run.curve for run in runs), strict=True):
            values = [point.pick_ratio for point in epoch if point.pick_ratio is not None]
            if values:
                r = mean_std(values)
                done = epoch[0].epoch / len(runs[0].curve)
                found.append(Point("", label(paper, curve), done, r.mean, r.std, r.n, budget_note(runs)))
    return found


def label(paper: Paper, curve: Curve) -> str:
    """Dataset and pair."""
    pair = paper.recipes.pairs[curve.pair]
    return f"{curve.dataset}: {pair.teacher} -> {pair.student}"


def as_json(found: Sequence[Point]) -> list[dict[str, Any]]:
    """The points as DVC plots them."""
    names = {"x": "epochs", "mean": "error"} if found and found[0].panel else {"x": "epoch", "mean": "r"}
    return [{names.get(key, key): value for key, value in asdict(point).items()} for point in found]


def draw(paper: Paper, part: EpochsFigure | PickRatioFigure, found: list[Point], path: Path, suffix: str) -> None:
    """Draw to `path` as svg or png; the same records give the same bytes."""
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none"}):
        figure = (
            _draw_errors(paper, part, found) if isinstance(part, EpochsFigure) else _draw_ratios(paper, part, found)
        )
        budget_notes = sorted({point.budget_note for point in found} - {""})
        if budget_notes:
            shown = "; ".join(budget_notes[:3]) + ("; ..." if len(budget_notes) > 3 else "")
            figure.suptitle(f"not a full run: {shown}", x=0.99, ha="right", fontsize=7, color="grey")
        save(figure, path, suffix)


def _line(axes: Any, found: list[Point], colour: str, label: str, marker: str = "") -> None:
    x, mean = [p.x for p in found], [p.mean for p in found]
    axes.plot(x, mean, color=colour, label=label, marker=marker, markersize=3)
    std = [p.std or 0.0 for p in found]
    low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _draw_errors(paper: Paper, part: EpochsFigure, found: list[Point]) -> Figure:
    views = len(part.base_views)
    rows = len(part.pairs)
    figure = Figure(figsize=(3.2 * views, 2.9 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, views, squeeze=False, sharey="row")
    printed = {(VIEWS[point.base_view], point.method): point for point in part.paper}
    for axes, panel in zip(grid.flat, panels(paper, part), strict=True):
        for colour, above, method in zip(COLOURS, (9, -15, 18, -24), part.methods, strict=False):
            mine = [point for point in found if (point.panel, point.line) == (panel, method)]
            _line(axes, mine, colour, method, "o")
            if mine:
                best = min(mine, key=lambda point: point.mean)
                axes.plot([best.x], [best.mean], "*", color=colour, markersize=11)
                edge = "right" if best.x == max(part.epochs) else "center"
                axes.annotate(f"({best.x:g}, {best.mean:.2f})", (best.x, best.mean), textcoords="offset points",
                              xytext=(0, above), ha=edge, fontsize=7, color=colour)  # fmt: skip
            theirs = printed.get((panel, method))
            if theirs is not None:
                axes.plot([theirs.epochs], [theirs.error], "*", markersize=11, markerfacecolor="none", color=colour)
        if not any(point.panel == panel for point in found):
            axes.text(0.5, 0.5, "missing", transform=axes.transAxes, ha="center", color="grey")
            axes.set_xticks([])
        axes.set_title(panel, fontsize=9)
        axes.set_xlabel("total epochs of a full run")
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    for row in grid:
        row[0].set_ylabel("test error %")
    star = "star: optimum, hollow: the paper's" if part.paper else "star: optimum"
    grid[0][0].legend(frameon=False, title=star, title_fontsize=7)
    return figure


def _draw_ratios(paper: Paper, part: PickRatioFigure, found: list[Point]) -> Figure:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for colour, curve in zip(COLOURS, part.curves, strict=False):
        name = label(paper, curve)
        mine = [point for point in found if point.line == name]
        _line(axes, mine, colour, name if mine else f"{name} (missing)")
    axes.set(xlabel="share of training done", ylabel="r, mean of each epoch", xlim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
    return figure
