"""Tables and figures, made from records only. Never imports torch."""

from __future__ import annotations

from pathlib import Path

from kdflow import files, record
from kdflow.config import Experiment
from kdflow.record import RunRecord, TeacherRecord
from kdflow.report.table import Results, markdown


def collect(experiment: Experiment, teacher: Path, records: Path) -> Results:
    """Read the records of the experiment in hand, a list per method in the order of params.yaml."""
    params = experiment.params
    runs = {
        method: [record.read(records / method / f"seed{seed}.json", RunRecord) for seed in params.seeds]
        for method in params.methods
    }
    return Results(params.dataset, params.student, record.read(teacher, TeacherRecord), runs)


def write(experiment: Experiment, teacher: Path, records: Path, out: Path) -> None:
    """Write table.md, accuracy.svg and accuracy.png to `out`."""
    from kdflow.report.figure import draw

    results = collect(experiment, teacher, records)
    files.write_text(out / "table.md", markdown(results))
    for suffix in ("svg", "png"):
        with files.replacing(out / f"accuracy.{suffix}") as beside:
            draw(results, beside, suffix)
