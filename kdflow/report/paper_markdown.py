"""A paper's results as a Markdown page: all tables and figures, then each cell with the hash of its record."""

from __future__ import annotations

from pathlib import Path

from kdflow.core import files
from kdflow.paper.cells import CELL_RECORD, CellStatuses, cell_folder
from kdflow.paper.paper import Paper
from kdflow.report import paper_item
from kdflow.training.record import RunRecord, distinct_notes

INTRODUCTION = "introduction.md"  # in the paper's folder: the text above the tables


def write(paper: Paper, out: Path) -> None:
    """Write the page to `out`, and its figures to a folder of the same name beside it.

    The same records give the same bytes. Tables and figures are as far as their cells exist.
    """
    statuses, images = CellStatuses(paper), out.with_suffix("")
    introduction = paper.root / paper.folder / INTRODUCTION
    parts = [introduction.read_text().strip()] if introduction.exists() else [f"# {paper.folder}: results"]
    parts += [_budget(paper, statuses)]
    for name in paper.items:
        parts.append(_item(paper, statuses, name, images))
    parts += [_costs(paper, statuses), _cells(paper, statuses)]
    files.write_text(out, "\n\n".join(parts) + "\n")


def _runs(paper: Paper, statuses: CellStatuses) -> dict[str, list[RunRecord]]:
    """Return the records of each cell that has some."""
    return {name: runs for name in paper.cells if (runs := statuses.runs(name))}


def _budget(paper: Paper, statuses: CellStatuses) -> str:
    runs = [run for cell in _runs(paper, statuses).values() for run in cell]
    notes = distinct_notes(run.budget.budget_note for run in runs)
    if not notes:
        return f"{len(paper.cells)} cells, none of which has records."
    return "**Not a full run.** The budgets are: " + "; ".join(notes) + "."


def _item(paper: Paper, statuses: CellStatuses, name: str, images: Path) -> str:
    view = paper_item.view(paper, statuses, name)
    lines = [f"## {name}: {paper.items[name].caption}", ""]
    if view.svg:
        files.write_bytes(images / f"{name}.svg", view.svg)
        lines += [f"![{paper.items[name].caption}]({images.name}/{name}.svg)", ""]
    if view.rows:
        details = any(cell.details for cells in view.rows.values() for cell in cells)
        lines += [f"| | {' | '.join(view.columns)} |", f"| --- |{' ---: |' * len(view.columns)}"]
        for label, cells in view.rows.items():
            texts = ["<br>".join([cell.text, *cell.details]) if details else cell.text for cell in cells]
            lines.append(f"| {label} | {' | '.join(texts)} |")
        lines.append("")
    lines += [f"- {note}" for note in view.notes]
    return "\n".join([*lines, f"- `{paper.repro_command(name)}`"])


def _costs(paper: Paper, statuses: CellStatuses) -> str:
    """Return the time of all runs, and the teacher views that stores have saved."""
    timings = [run.timing for runs in _runs(paper, statuses).values() for run in runs]
    computed, read = (
        sum(getattr(timing, f"teacher_views_{kind}") for timing in timings) for kind in ("computed", "read")
    )
    hours = sum(timing.seconds for timing in timings) / 3600
    return (
        f"## Cost\n\n{len(timings)} runs took {hours:.1f} hours in total, each with one thread. Their methods needed "
        f"teacher outputs for {computed + read:,} views: {computed:,} were computed in training, and the others were "
        "read from stores."
    )


def _cells(paper: Paper, statuses: CellStatuses) -> str:
    lines = [
        "## All cells",
        "",
        f"`{paper.repro_command('CELL')}` makes a cell. Record: the first 12 digits of its {CELL_RECORD}'s SHA-256.",
        "",
        "| Cell | Top-1 % | n | Last loss | Budget | Hours | Record |",
        "| --- | ---: | ---: | ---: | --- | ---: | --- |",
    ]
    for name, runs in _runs(paper, statuses).items():
        cell = statuses(name).record
        assert cell is not None
        sha256 = files.sha256(cell_folder(paper, name) / CELL_RECORD)
        hours = sum(run.timing.seconds for run in runs) / 3600
        values = (str(cell.top1), str(cell.top1.n), f"{cell.loss.mean:.3f}", cell.budget_note, f"{hours:.2f}")
        lines.append(f"| {name} | {' | '.join(values)} | `{sha256[:12]}` |")
    missing = [name for name in paper.cells if not statuses.runs(name)]
    if missing:
        lines += ["", f"{len(missing)} cells are missing: {', '.join(missing)}."]
    return "\n".join(lines)
