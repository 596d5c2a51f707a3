"""The page of a paper: one HTML file with all tables, figures, records and commands. It loads nothing else."""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kdflow.core import files
from kdflow.paper.cells import CellStatuses, cell_folder, teacher_folder
from kdflow.paper.paper import Paper
from kdflow.report import paper_item
from kdflow.report.accuracy_table import METHOD_NOTE
from kdflow.training.record import RunRecord, distinct_notes

TEMPLATE = Path(__file__).with_name("paper_page.html.j2")
CURVE_SIZE = (220, 90)  # pixels
CURVE_POINTS = 80


@dataclass(frozen=True)
class CellView:
    """A cell or teacher in the list of all: status, accuracy, records, command, and its test accuracy as svg."""

    status: str
    command: str
    reason: str = ""
    top1: str = ""
    budget_note: str = ""
    records: tuple[str, ...] = ()
    curve: Markup | str = ""


def write(paper: Paper, out: Path) -> None:
    """Write the page of the records that exist now to `out`."""
    files.write_text(out, render(paper))


def render(paper: Paper) -> str:
    """Return the page; its links are relative to the paper's data folder."""
    statuses = CellStatuses(paper)
    by_status = dict.fromkeys(("done", "partial", "stale", "missing"), 0)
    for name in paper.cells:
        by_status[statuses(name).status] += 1
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    teachers = {name: _teacher_view(paper, statuses, name) for name in paper.teachers}
    cells = {name: _cell_view(paper, statuses, name) for name in paper.cells}
    return environment.from_string(TEMPLATE.read_text()).render(
        folder=paper.folder.as_posix(),
        counts=by_status,
        total=len(paper.cells),
        items=[_item_content(paper, statuses, name) for name in paper.items],
        cells=teachers | cells,
        method_note=METHOD_NOTE,
        budget_notes=distinct_notes(view.budget_note for view in (teachers | cells).values()),
    )


def _item_content(paper: Paper, statuses: CellStatuses, name: str) -> dict[str, Any]:
    view = paper_item.view(paper, statuses, name)
    return {
        "name": name,
        "caption": paper.items[name].caption,
        "command": paper.repro_command(name),
        "notes": [note for note in view.notes if note != METHOD_NOTE],  # which the page has once, at its top
        "columns": view.columns,
        "rows": view.rows,
        "image": base64.b64encode(view.svg).decode(),
    }


def _cell_view(paper: Paper, statuses: CellStatuses, name: str) -> CellView:
    status, runs = statuses(name), statuses.runs(name)
    folder = cell_folder(paper, name).relative_to(paper.root / paper.data)
    return CellView(
        status=status.status,
        command=paper.repro_command(name),
        reason=status.reason,
        top1=str(status.record.top1) if status.record and status.seeds_done else "",
        budget_note=status.record.budget_note if status.record else "",
        records=tuple((folder / f"seed{run.settings.seed}.json").as_posix() for run in runs),
        curve=_curve(runs),
    )


def _teacher_view(paper: Paper, statuses: CellStatuses, name: str) -> CellView:
    teacher, command = statuses.teacher(name), paper.repro_command(name)
    if teacher is None:
        return CellView("missing", command)
    file = teacher_folder(paper, name).relative_to(paper.root / paper.data) / "record.json"
    return CellView(
        status="done",
        command=command,
        top1=f"{teacher.accuracy.top1:.2f}",
        budget_note=teacher.budget_note,
        records=(file.as_posix(),),
    )


def _curve(runs: list[RunRecord]) -> Markup:
    """Return the test accuracy during training as svg, one line for each seed."""
    lines = [list(run.tested.items()) for run in runs]
    if not lines or len(lines[0]) < 2:
        return Markup()
    values = [top1 for line in lines for _, top1 in line]
    low, high = min(values), max(values)
    last = max(epoch for line in lines for epoch, _ in line)
    width, height = CURVE_SIZE

    def position(epoch: int, top1: float) -> str:
        return f"{epoch / last * width:.1f},{height - (top1 - low) / (high - low or 1) * (height - 4) - 2:.1f}"

    polylines = ""
    for line in lines:
        thinned = [*itertools.islice(line, 0, None, max(1, len(line) // CURVE_POINTS)), line[-1]]
        polylines += f'<polyline points="{" ".join(position(*point) for point in thinned)}"/>'
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="test accuracy during training, {low:.1f} to {high:.1f} %">{polylines}</svg>'
        f"<small>{low:.1f} to {high:.1f} %, {last} epochs</small>"
    )
