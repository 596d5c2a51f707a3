"""A paper's table of parameters and FLOPs, in the formats that it is printed in."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from kdflow.core import files
from kdflow.paper.cells import CellStatuses
from kdflow.paper.paper import Paper
from kdflow.paper.tables import CostTable
from kdflow.report.paper_item import ItemView, TableCell

QUANTITIES = ("teacher_params", "student_params", "compression", "teacher_flops", "student_flops", "speed_up")
METHOD_NOTE = (
    "Parameters in millions, FLOPs in 1e9 for one image: 2 for each multiply-add of convolutions and fully connected "
    "layers. By the paper's count: it divides the FLOPs of grouped convolutions by groups twice."
)


class CostTableRow(NamedTuple):
    """One quantity of a pair beside the paper's value.

    `paper_count` is the value by the paper's way to count, None where both ways agree.
    """

    pair: str
    quantity: str
    value: float
    paper: float | None
    paper_count: float | None


def write(paper: Paper, statuses: CellStatuses, name: str, item: CostTable, out: Path) -> None:
    """Write the table in all text formats to `out`."""
    for suffix, content in view(paper, statuses, name, item).formats.items():
        files.write_text(out / f"table.{suffix}", content)


def view(paper: Paper, statuses: CellStatuses, name: str, item: CostTable) -> ItemView:  # noqa: ARG001
    """Return the table with the paper's values below the counted ones."""
    counted = rows(paper, item)
    columns = [quantity.replace("_", " ") for quantity in QUANTITIES]
    cells = {pair: [_table_cell(row) for row in values] for pair, values in _by_pair(counted).items()}
    return ItemView([METHOD_NOTE, *item.notes], columns, cells, formats=all_formats(name, item, counted))


def _table_cell(row: CostTableRow) -> TableCell:
    value, *details = _texts(row)
    return TableCell(value, "done", tuple(details))


def rows(paper: Paper, table: CostTable) -> list[CostTableRow]:
    """Count the models of all pairs; return one row for each pair and quantity."""
    from kdflow.models import cost

    experiment = paper.teacher_experiment(next(iter(paper.teachers)))  # any: only its recipes are used
    result: list[CostTableRow] = []
    for i, pair in enumerate(table.pairs):
        names = paper.recipes.pairs[pair]
        teacher, student = cost.compare(experiment, table.dataset, [names.teacher, names.student])
        assert student.ratios is not None
        values = (
            (teacher.cost.params / 1e6, None),
            (student.cost.params / 1e6, None),
            (student.ratios.compression, None),
            (teacher.cost.flops / 1e9, teacher.cost.paper_flops / 1e9),
            (student.cost.flops / 1e9, student.cost.paper_flops / 1e9),
            (student.ratios.speed_up, student.ratios.paper_speed_up),
        )
        for quantity, (value, paper_count) in zip(QUANTITIES, values, strict=True):
            printed = table.paper[quantity][i] if quantity in table.paper else None
            other = paper_count if paper_count != value else None
            result.append(CostTableRow(f"{names.teacher} -> {names.student}", quantity, value, printed, other))
    return result


def all_formats(name: str, table: CostTable, rows: list[CostTableRow]) -> dict[str, str]:
    """Return the rows as Markdown, LaTeX, CSV and JSON, by file suffix."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CostTableRow._fields)
    writer.writerows(rows)
    content: dict[str, Any] = {"table": name, "caption": table.caption, "notes": [METHOD_NOTE, *table.notes]}
    content["values"] = [row._asdict() for row in rows]
    return {
        "md": _markdown(name, table, rows),
        "tex": _latex(rows),
        "csv": text.getvalue(),
        "json": json.dumps(content, indent=1) + "\n",
    }


def _by_pair(rows: list[CostTableRow]) -> dict[str, list[CostTableRow]]:
    pairs: dict[str, list[CostTableRow]] = {}
    for row in rows:
        pairs.setdefault(row.pair, []).append(row)
    return pairs


def _texts(row: CostTableRow) -> list[str]:
    """Format the value, the value by the paper's count where that differs, and the paper's value."""
    texts = [f"{row.value:.4f}"]
    texts += [f"paper's count {row.paper_count:.4f}"] if row.paper_count is not None else []
    texts += [f"paper {row.paper:.4f}"] if row.paper is not None else []
    return texts


def _markdown(name: str, table: CostTable, rows: list[CostTableRow]) -> str:
    lines = [f"# {name}: {table.caption}", ""]
    lines += [f"| | {' | '.join(QUANTITIES)} |", f"| --- |{' ---: |' * len(QUANTITIES)}"]
    for pair, values in _by_pair(rows).items():
        lines.append(f"| {pair} | {' | '.join(', '.join(_texts(row)) for row in values)} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in (METHOD_NOTE, *table.notes)), ""])


def _latex(rows: list[CostTableRow]) -> str:
    lines = [rf"\begin{{tabular}}{{l{'r' * len(QUANTITIES)}}}", r"\toprule"]
    lines += [" & ".join(["", *(quantity.replace("_", " ") for quantity in QUANTITIES)]) + r" \\", r"\midrule"]
    for pair, values in _by_pair(rows).items():
        label = pair.replace("_", r"\_").replace("->", r"$\to$")
        lines.append(" & ".join([label, *(f"{row.value:.4f}" for row in values)]) + r" \\")
    return "\n".join([f"% {METHOD_NOTE}", *lines, r"\bottomrule", r"\end{tabular}", ""])
