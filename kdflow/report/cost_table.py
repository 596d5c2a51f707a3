"""Tables of parameters and FLOPs beside the paper's."""

from __future__ import annotations

import csv
import json
from io import StringIO
from typing import Any

from kdflow.paper.paper import Paper
from kdflow.paper.tables import CostTable

COLUMNS = ("pair", "figure", "ours", "paper", "by_the_papers_count")
FIGURES = ("teacher_params", "student_params", "compression", "teacher_flops", "student_flops", "speed_up")
METHOD_NOTE = (
    "Parameters in millions, FLOPs in 1e9 for one image: 2 for each multiply-add of convolutions and fully connected "
    "layers. By the paper's count: it divides the FLOPs of grouped convolutions by groups twice."
)

CostTableRow = tuple[str, str, float, float | None, float | None]


def rows(paper: Paper, table: CostTable) -> list[CostTableRow]:
    """A row of `HEAD` per pair and figure; the last is None where both ways of counting are one."""
    from kdflow.config import Experiment
    from kdflow.models import cost

    some = next(name for name, teacher in paper.teachers.items())
    experiment: Experiment = paper.teacher_experiment(some)
    found: list[CostTableRow] = []
    for i, pair in enumerate(table.pairs):
        names = paper.recipes.pairs[pair]
        teacher, student = cost.compare(experiment, table.dataset, [names.teacher, names.student])
        assert student.ratios is not None
        ours = (
            (teacher.cost.params / 1e6, None),
            (student.cost.params / 1e6, None),
            (student.ratios.compression, None),
            (teacher.cost.flops / 1e9, teacher.cost.paper_flops / 1e9),
            (student.cost.flops / 1e9, student.cost.paper_flops / 1e9),
            (student.ratios.speed_up, student.ratios.paper_speed_up),
        )
        for figure, (true, theirs) in zip(FIGURES, ours, strict=True):
            printed = table.paper[figure][i] if figure in table.paper else None
            found.append(
                (f"{names.teacher} -> {names.student}", figure, true, printed, theirs if theirs != true else None)
            )
    return found


def all_formats(name: str, table: CostTable, found: list[CostTableRow]) -> dict[str, str]:
    """Markdown, LaTeX, CSV and JSON, by file suffix."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(found)
    content: dict[str, Any] = {"table": name, "caption": table.caption, "notes": [METHOD_NOTE, *table.notes]}
    content["figures"] = [dict(zip(COLUMNS, row, strict=True)) for row in found]
    return {
        "md": _markdown(name, table, found),
        "tex": _latex(found),
        "csv": text.getvalue(),
        "json": json.dumps(content, indent=1) + "\n",
    }


def by_pair(found: list[CostTableRow]) -> dict[str, list[CostTableRow]]:
    """The rows of each pair."""
    pairs: dict[str, list[CostTableRow]] = {}
    for row in found:
        pairs.setdefault(row[0], []).append(row)
    return pairs


def shown(row: CostTableRow) -> str:
    """Ours, by the paper's count where that differs, and the paper's."""
    _, _, ours, printed, theirs = row
    parts = [f"{ours:.4f}"]
    parts += [f"its count {theirs:.4f}"] if theirs is not None else []
    parts += [f"paper {printed:.4f}"] if printed is not None else []
    return ", ".join(parts)


def _markdown(name: str, table: CostTable, found: list[CostTableRow]) -> str:
    lines = [f"# {name}: {table.caption}", "", f"| | {' | '.join(FIGURES)} |", f"| --- |{' ---: |' * len(FIGURES)}"]
    lines += [f"| {pair} | {' | '.join(map(shown, rows))} |" for pair, rows in by_pair(found).items()]
    return "\n".join([*lines, "", *(f"- {note}" for note in (METHOD_NOTE, *table.notes)), ""])


def _latex(found: list[CostTableRow]) -> str:
    lines = [rf"\begin{{tabular}}{{l{'r' * len(FIGURES)}}}", r"\toprule"]
    lines += [" & ".join(["", *(figure.replace("_", " ") for figure in FIGURES)]) + r" \\", r"\midrule"]
    for pair, rows in by_pair(found).items():
        label = pair.replace("_", r"\_").replace("->", r"$\to$")
        lines.append(" & ".join([label, *(f"{row[2]:.4f}" for row in rows)]) + r" \\")
    return "\n".join([f"% {METHOD_NOTE}", *lines, r"\bottomrule", r"\end{tabular}", ""])
