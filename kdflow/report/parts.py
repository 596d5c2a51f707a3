"""Writes a paper's tables and figures, made from records."""

from __future__ import annotations

import json
from pathlib import Path

from kdflow import files
from kdflow.cells import States
from kdflow.plan import Costs, Epochs, Paper, PickRatio, Results
from kdflow.report import costs, curves, tables
from kdflow.report.grid import grid


def write(paper: Paper, name: str, out: Path) -> None:
    """Write a table (Markdown, LaTeX, CSV, JSON) or figure (SVG, PNG) to `out`.

    What DVC shows of it, means or points, goes to metrics/ or plots/ beside.
    """
    part, states = paper.part_named(name), States(paper)
    if isinstance(part, Results):
        found = grid(paper, states, name, part)
        for suffix, content in tables.all_forms(found).items():
            files.write_text(out / f"table.{suffix}", content)
        files.write_text(out.parent / "metrics" / f"{name}.json", tables.metrics(found))
    elif isinstance(part, Costs):
        rows = costs.rows(paper, part)
        for suffix, content in costs.all_forms(name, part, rows).items():
            files.write_text(out / f"table.{suffix}", content)
    elif isinstance(part, Epochs | PickRatio):
        points = curves.points(paper, states, part)
        for suffix in ("svg", "png"):
            with files.replacing(out / f"figure.{suffix}") as beside:
                curves.draw(paper, part, points, beside, suffix)
        files.write_text(out.parent / "plots" / f"{name}.json", json.dumps(curves.as_json(points), indent=1) + "\n")
