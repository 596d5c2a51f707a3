"""Writes a paper's tables and figures, made from records."""

from __future__ import annotations

import json
from pathlib import Path

from kdflow.core import files
from kdflow.paper.cells import CellStatuses
from kdflow.paper.paper import Paper
from kdflow.paper.tables import AccuracyTable, CostTable, EpochsFigure, PickRatioFigure
from kdflow.report import cost_table, paper_figure, paper_table
from kdflow.report.paper_grid import grid


def write(paper: Paper, name: str, out: Path) -> None:
    """Write a table (Markdown, LaTeX, CSV, JSON) or figure (SVG, PNG) to `out`.

    What DVC shows of it, means or points, goes to metrics/ or plots/ beside.
    """
    part, states = paper.part_named(name), CellStatuses(paper)
    if isinstance(part, AccuracyTable):
        found = grid(paper, states, name, part)
        for suffix, content in paper_table.all_formats(found).items():
            files.write_text(out / f"table.{suffix}", content)
        files.write_text(out.parent / "metrics" / f"{name}.json", paper_table.metrics(found))
    elif isinstance(part, CostTable):
        rows = cost_table.rows(paper, part)
        for suffix, content in cost_table.all_formats(name, part, rows).items():
            files.write_text(out / f"table.{suffix}", content)
    elif isinstance(part, EpochsFigure | PickRatioFigure):
        points = paper_figure.points(paper, states, part)
        for suffix in ("svg", "png"):
            with files.atomic_write(out / f"figure.{suffix}") as beside:
                paper_figure.draw(paper, part, points, beside, suffix)
        files.write_text(
            out.parent / "plots" / f"{name}.json", json.dumps(paper_figure.as_json(points), indent=1) + "\n"
        )
