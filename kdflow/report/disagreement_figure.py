"""A paper's figure of strong views for which the teacher predicts another class than the mixed label."""

from __future__ import annotations

from pathlib import Path

from kdflow.paper.cells import CellStatuses, teacher_folder
from kdflow.paper.figures import DisagreementFigure
from kdflow.paper.paper import Paper
from kdflow.report.disagreement_result import DisagreementResult
from kdflow.report.paper_item import ItemView
from kdflow.training import record


def write(paper: Paper, statuses: CellStatuses, name: str, item: DisagreementFigure, out: Path) -> None:  # noqa: ARG001
    """Run the teacher on one epoch of strong views; write the percentage and samples to `out`."""
    from kdflow.report.disagreement import write_disagreement

    (teacher,) = paper.teachers_of(item)
    dataset = paper.root / paper.data / f"{item.dataset}.h5"
    write_disagreement(paper.teacher_experiment(teacher), item.view, dataset, teacher_folder(paper, teacher), out)


def view(paper: Paper, statuses: CellStatuses, name: str, item: DisagreementFigure) -> ItemView:  # noqa: ARG001
    """Return the percentage and the samples that the figure's stage wrote, if it has run."""
    folder, notes = paper.root / paper.data / name, [*item.notes]
    file, samples = folder / "disagreement.json", folder / "samples.svg"
    if file.exists():
        result = record.read_record(file, DisagreementResult)
        notes.append(f"On {result.percent:.1f} % of {result.views:,} views, teacher and label disagree.")
    if item.paper is not None:
        notes.append(f"The paper: on {item.paper:g} % of the views.")
    return ItemView(notes, svg=samples.read_bytes() if samples.exists() else b"")
