"""A paper's figure of strong views for which the teacher predicts another class than the mixed label."""

from __future__ import annotations

from pathlib import Path

from kdflow.paper.cells import CellStatuses, teacher_folder
from kdflow.paper.paper import Paper
from kdflow.paper.tables import DisagreementFigure
from kdflow.report.paper_item import ItemView


def write(paper: Paper, statuses: CellStatuses, name: str, item: DisagreementFigure, out: Path) -> None:  # noqa: ARG001
    """Run the teacher on one epoch of strong views; write the percentage and samples to `out`."""
    from kdflow.report.disagreement import write_disagreement

    (teacher,) = paper.teachers_of(item)
    dataset = paper.root / paper.data / f"{item.dataset}.h5"
    write_disagreement(paper.teacher_experiment(teacher), item.view, dataset, teacher_folder(paper, teacher), out)


def view(paper: Paper, statuses: CellStatuses, name: str, item: DisagreementFigure) -> ItemView:  # noqa: ARG001
    """Return the samples that the figure's stage wrote, if it has run."""
    file = paper.root / paper.data / name / "samples.svg"
    notes = [f"The paper: on {item.paper:g} % of the views."] if item.paper is not None else []
    return ItemView([*item.notes, *notes], svg=file.read_bytes() if file.exists() else b"")
