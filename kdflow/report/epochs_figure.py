"""A paper's figure of the test error against the total number of epochs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdflow.config import BaseViewName
from kdflow.paper.cells import CellStatuses
from kdflow.paper.figures import EpochsFigure
from kdflow.paper.item import CellSpec
from kdflow.paper.paper import Paper
from kdflow.report.experiment_figure import COLOURS
from kdflow.report.paper_figure import Point, figure_view, plot_line, write_figure
from kdflow.report.paper_item import ItemView
from kdflow.training.record import budget_note, mean_std

BASE_VIEWS = {"none": "no augmentation", "flip": "flip", "flip+crop": "flip and crop"}


def write(paper: Paper, statuses: CellStatuses, name: str, item: EpochsFigure, out: Path) -> None:
    """Write the figure to `out`, and its points to plots/ beside it."""
    line_points = points(paper, statuses, item)
    write_figure(name, item, line_points, partial(_draw, paper, item, line_points), out)


def view(paper: Paper, statuses: CellStatuses, name: str, item: EpochsFigure) -> ItemView:
    """Return the figure as svg."""
    line_points = points(paper, statuses, item)
    return figure_view(paper, statuses, name, item, line_points, partial(_draw, paper, item, line_points))


def points(paper: Paper, statuses: CellStatuses, item: EpochsFigure) -> list[Point]:
    """Return the points whose cells exist."""
    result = []
    for panel, (pair, base_view) in panels(paper, item).items():
        for method in item.methods:
            for epochs in sorted(item.epochs):
                runs = statuses.runs(paper.cell_name(CellSpec(item.dataset, pair, method, epochs, base_view)))
                if runs:
                    error = mean_std([100 - run.final.top1 for run in runs])
                    note = budget_note(runs)
                    result.append(Point(panel, method, float(epochs), error.mean, error.std, error.n, note))
    return result


def panels(paper: Paper, item: EpochsFigure) -> dict[str, tuple[str, BaseViewName]]:
    """Return the pair and base view of each panel by its title."""
    several = len(item.pairs) > 1
    return {
        (f"{paper.recipes.pairs[pair].student}, " if several else "") + BASE_VIEWS[base_view]: (pair, base_view)
        for pair in item.pairs
        for base_view in item.base_views
    }


def _draw(paper: Paper, item: EpochsFigure, points: Sequence[Point]) -> Figure:
    columns, rows = len(item.base_views), len(item.pairs)
    figure = Figure(figsize=(3.2 * columns, 2.9 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row")
    for axes, panel in zip(grid.flat, panels(paper, item), strict=True):
        _draw_panel(axes, panel, item, [point for point in points if point.panel == panel])
    for row in grid:
        row[0].set_ylabel("test error %")
    star = "star: optimum, hollow: the paper's" if item.paper else "star: optimum"
    grid[0][0].legend(frameon=False, title=star, title_fontsize=7)
    return figure


def _draw_panel(axes: Axes, panel: str, item: EpochsFigure, points: Sequence[Point]) -> None:
    optima = {(BASE_VIEWS[point.base_view], point.method): point for point in item.paper}
    for colour, above, method in zip(COLOURS, (9, -15, 18, -24), item.methods, strict=False):
        line = [point for point in points if point.line == method]
        plot_line(axes, line, colour, method, "o")
        if line:
            best = min(line, key=lambda point: point.mean)
            axes.plot([best.x], [best.mean], "*", color=colour, markersize=11)
            edge = "right" if best.x == max(item.epochs) else "center"
            axes.annotate(f"({best.x:g}, {best.mean:.2f})", (best.x, best.mean), textcoords="offset points",
                          xytext=(0, above), ha=edge, fontsize=7, color=colour)  # fmt: skip
        optimum = optima.get((panel, method))
        if optimum is not None:
            axes.plot([optimum.epochs], [optimum.error], "*", markersize=11, markerfacecolor="none", color=colour)
    if not points:
        axes.text(0.5, 0.5, "missing", transform=axes.transAxes, ha="center", color="grey")
        axes.set_xticks([])
    axes.set_title(panel, fontsize=9)
    axes.set_xlabel("total epochs of a full run")
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
