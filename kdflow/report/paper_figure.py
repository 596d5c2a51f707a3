"""Figures of curves: what the kinds epochs_figure and pick_ratio_figure share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from kdflow.core import files
from kdflow.paper.cells import CellStatuses
from kdflow.paper.item import Item
from kdflow.paper.paper import Paper
from kdflow.report.experiment_figure import save
from kdflow.report.paper_item import ItemView
from kdflow.training.record import distinct_notes


@dataclass(frozen=True)
class Point:
    """A mean over n seeds; `x` is a total number of epochs or a fraction of training."""

    panel: str
    line: str
    x: float
    mean: float
    std: float | None
    n: int
    budget_note: str


def write_figure(name: str, item: Item, points: Sequence[Point], draw: Callable[[], Figure], out: Path) -> None:
    """Write figure.svg and figure.png to `out`, and the points to plots/ beside it."""
    for suffix in ("svg", "png"):
        with files.atomic_write(out / f"figure.{suffix}") as beside:
            save_figure((point.budget_note for point in points), draw, beside, suffix)
    files.write_text(out.parent / "plots" / f"{name}.json", json.dumps(dvc_plot(item, points), indent=1) + "\n")


def figure_view(
    paper: Paper, statuses: CellStatuses, name: str, item: Item, points: Sequence[Point], draw: Callable[[], Figure]
) -> ItemView:
    """Return the figure as svg, drawn from the records that exist now, with a note on how many cells do."""
    cells = paper.cells_of(name)
    done = sum(statuses(cell).seeds_done > 0 for cell in cells)
    svg = BytesIO()
    save_figure((point.budget_note for point in points), draw, svg, "svg")
    return ItemView([*item.notes, f"{done} of {len(cells)} cells are done or partial."], svg=svg.getvalue())


def save_figure(budget_notes: Iterable[str], draw: Callable[[], Figure], file: Path | BytesIO, suffix: str) -> None:
    """Draw and save as svg or png, with a note on reduced budgets. The same figure gives the same bytes."""
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none"}):
        figure = draw()
        notes = distinct_notes(budget_notes)
        if notes:
            text = "; ".join(notes[:3]) + ("; ..." if len(notes) > 3 else "")
            figure.suptitle(f"not a full run: {text}", x=0.99, ha="right", fontsize=7, color="grey")
        save(figure, file, suffix)


def dvc_plot(item: Item, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return the points with the names of x and y in DVC's plot."""
    assert item.plot is not None
    names = {"x": item.plot["x"], "mean": item.plot["y"]}
    return [{names.get(key, key): value for key, value in asdict(point).items()} for point in points]


def plot_line(axes: Any, points: Sequence[Point], colour: str, label: str, marker: str = "") -> None:
    """Plot means as a line, and one standard deviation as a band."""
    x, mean = [p.x for p in points], [p.mean for p in points]
    axes.plot(x, mean, color=colour, label=label, marker=marker, markersize=3)
    std = [p.std or 0.0 for p in points]
    low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
