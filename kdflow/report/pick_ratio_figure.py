"""A paper's figure of the pick ratio r (Eq. 4) during training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from kdflow.paper.cells import CellStatuses
from kdflow.paper.figures import Curve, PickRatioFigure
from kdflow.paper.item import CellSpec
from kdflow.paper.paper import Paper
from kdflow.report.experiment_figure import COLOURS
from kdflow.report.paper_figure import Point, figure_view, plot_line, write_figure
from kdflow.report.paper_item import ItemView
from kdflow.training.record import budget_note, mean_std


def write(paper: Paper, statuses: CellStatuses, name: str, item: PickRatioFigure, out: Path) -> None:
    """Write the figure to `out`, and its points to plots/ beside it."""
    line_points = points(paper, statuses, item)
    write_figure(name, item, line_points, partial(_draw, paper, item, line_points), out)


def view(paper: Paper, statuses: CellStatuses, name: str, item: PickRatioFigure) -> ItemView:
    """Return the figure as svg."""
    line_points = points(paper, statuses, item)
    return figure_view(paper, statuses, name, item, line_points, partial(_draw, paper, item, line_points))


def points(paper: Paper, statuses: CellStatuses, item: PickRatioFigure) -> list[Point]:
    """Return one point for each epoch of the curves whose cells exist; x is the fraction of training."""
    result = []
    for curve in item.curves:
        runs = statuses.runs(paper.cell_name(CellSpec(curve.dataset, curve.pair, item.method)))
        for epoch in zip(*(run.curve for run in runs), strict=True):
            values = [point.pick_ratio for point in epoch if point.pick_ratio is not None]
            if values:
                r, fraction = mean_std(values), epoch[0].epoch / len(runs[0].curve)
                result.append(Point("", label(paper, curve), fraction, r.mean, r.std, r.n, budget_note(runs)))
    return result


def label(paper: Paper, curve: Curve) -> str:
    """Return the dataset and pair of a curve."""
    pair = paper.recipes.pairs[curve.pair]
    return f"{curve.dataset}: {pair.teacher} -> {pair.student}"


def _draw(paper: Paper, item: PickRatioFigure, points: Sequence[Point]) -> Figure:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for colour, curve in zip(COLOURS, item.curves, strict=False):
        name = label(paper, curve)
        line = [point for point in points if point.line == name]
        plot_line(axes, line, colour, name if line else f"{name} (missing)")
    axes.set(xlabel="fraction of training", ylabel="r, mean of each epoch", xlim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
    return figure
