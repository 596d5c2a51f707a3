"""The page of a paper: one HTML file with all tables, figures, records and commands; it needs no network."""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kdflow.core import files
from kdflow.paper.cells import CellStatus, CellStatuses
from kdflow.paper.paper import Paper
from kdflow.paper.tables import AccuracyTable, CostTable, DisagreementFigure, EpochsFigure, PickRatioFigure
from kdflow.report import cost_table, paper_figure, paper_table
from kdflow.report.paper_grid import command, grid, place
from kdflow.training.record import RunRecord

TEMPLATE = Path(__file__).with_name("paper_page.html.j2")
SPARK = (220, 90)  # pixels
POINTS = 80


@dataclass(frozen=True)
class CellView:
    """A cell or teacher in the list of all: its state, records and command, and its curve as SVG."""

    name: str
    state: str
    why: str
    figure: str
    budget_note: str
    records: list[str]
    command: str
    curve: Markup


def write(paper: Paper, out: Path) -> None:
    """Write the page of what is there now to `out`."""
    files.write_text(out, render(paper))


def render(paper: Paper) -> str:
    """The page; its links are relative to the paper's data."""
    states = CellStatuses(paper)
    found = {name: states(name) for name in paper.cells}
    counts = {
        status: sum(s.status == status for s in found.values()) for status in ("done", "partial", "stale", "missing")
    }
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"figure": paper_table.figure, "papers": paper_table.paper_text}
    shown = {name: _shown(paper, name, state, states.runs(name)) for name, state in found.items()}
    return environment.from_string(TEMPLATE.read_text()).render(
        folder=paper.folder.as_posix(),
        counts=counts,
        total=len(found),
        parts=[_part(paper, states, name) for name in paper.parts],
        cells=shown,
        everything={name: _teacher(paper, states, name) for name in paper.teachers} | shown,
        how=paper_table.METHOD_NOTE,
        budget_notes=sorted({cell.budget_note for cell in shown.values()} - {""}),
    )


def _part(paper: Paper, states: CellStatuses, name: str) -> dict[str, Any]:
    part = paper.parts[name]
    said: dict[str, Any] = {"name": name, "caption": part.caption, "kind": part.kind, "command": command(paper, name)}
    if isinstance(part, AccuracyTable):
        found = grid(paper, states, name, part)
        return said | {"grid": found, "heads": paper_table.column_names(found), "notes": paper_table.notes(found)[1:]}
    if isinstance(part, CostTable):
        rows = {
            pair: [cost_table.shown(row) for row in rows]
            for pair, rows in cost_table.by_pair(cost_table.rows(paper, part)).items()
        }
        return said | {"rows": rows, "heads": cost_table.FIGURES, "notes": [cost_table.METHOD_NOTE, *part.notes]}
    file = paper.root / paper.data / name / ("samples.svg" if isinstance(part, DisagreementFigure) else "figure.svg")
    notes = list(part.notes)
    if isinstance(part, DisagreementFigure) and part.paper is not None:
        notes.append(f"The paper: on {part.paper:g} % of the views.")
    if isinstance(part, EpochsFigure | PickRatioFigure):
        wanted = dict.fromkeys(cell for cell, users in paper.users.items() if name in users)
        made = sum(states(cell).n > 0 for cell in wanted)
        notes.append(f"{made} of {len(wanted)} cells are there.")
        content = _drawn(paper, states, part)
    else:
        content = file.read_bytes() if file.exists() else b""
    return said | {"notes": notes, "image": base64.b64encode(content).decode()}


def _drawn(paper: Paper, states: CellStatuses, part: EpochsFigure | PickRatioFigure) -> bytes:
    """The figure of what is there now, whether its stage has run or not."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        paper_figure.draw(paper, part, paper_figure.points(paper, states, part), path, "svg")
        return path.read_bytes()


def _shown(paper: Paper, name: str, state: CellStatus, runs: list[RunRecord]) -> CellView:
    where = place(paper, name).relative_to(paper.data)
    records = [(where / f"seed{run.settings.seed}.json").as_posix() for run in runs]
    figure = str(state.record.top1) if state.record and state.n else ""
    budget_note = state.record.budget_note if state.record else ""
    return CellView(name, state.status, state.why, figure, budget_note, records, command(paper, name), _spark(runs))


def _teacher(paper: Paper, states: CellStatuses, name: str) -> CellView:
    found = states.teacher(name)
    if found is None:
        return CellView(name, "missing", "", "", "", [], command(paper, name), Markup())
    where = (place(paper, name).relative_to(paper.data) / "record.json").as_posix()
    return CellView(
        name, "done", "", f"{found[0].accuracy.top1:.2f}", found[1], [where], command(paper, name), Markup()
    )


def _spark(runs: list[RunRecord]) -> Markup:
    """Test accuracy along training, a line per seed."""
    lines = [list(run.tested.items()) for run in runs]
    if not lines or len(lines[0]) < 2:
        return Markup()
    values = [top1 for line in lines for _, top1 in line]
    low, high = min(values), max(values)
    last = max(epoch for line in lines for epoch, _ in line)
    width, height = SPARK

    def place_of(epoch: int, top1: float) -> str:
        return f"{epoch / last * width:.1f},{height - (top1 - low) / (high - low or 1) * (height - 4) - 2:.1f}"

    drawn = ""
    for line in lines:
        thin = [*itertools.islice(line, 0, None, max(1, len(line) // POINTS)), line[-1]]
        drawn += f'<polyline points="{" ".join(place_of(*point) for point in thin)}"/>'
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="test accuracy along training, {low:.1f} to {high:.1f} %">{drawn}</svg>'
        f"<small>{low:.1f} to {high:.1f} %, {last} epochs</small>"
    )
