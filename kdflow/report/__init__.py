"""Tables and figures, made from records only. Never imports torch."""

from __future__ import annotations

from pathlib import Path

from kdflow.config import Experiment
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.report.experiment_table import ExperimentResults, markdown
from kdflow.training import record
from kdflow.training.record import RunRecord, TeacherRecord


def collect(experiment: Experiment, teacher: Path, records: Path) -> ExperimentResults:
    """Read the records of the experiment in hand, a list per method in the order of params.yaml.

    Raises:
        UserError: a record is missing, or was made at other settings.
    """
    params = experiment.params
    taught = record.read_record(teacher, TeacherRecord)
    _check(teacher, taught.architecture == params.teacher)
    runs: dict[str, list[RunRecord]] = {method: [] for method in params.methods}
    for method, found in runs.items():
        for seed in params.seeds:
            file = records / method / f"seed{seed}.json"
            run = record.read_record(file, RunRecord)
            _check(file, run.settings == experiment.student_run(method, seed))
            found.append(run)
    return ExperimentResults(params.dataset_name, params.student, taught, runs)


def _check(file: Path, fits: bool) -> None:
    if not fits:
        raise UserError(f"{file}: of other settings than those in hand; `dvc repro` makes it anew")


def write(experiment: Experiment, teacher: Path, records: Path, out: Path) -> None:
    """Write table.md, accuracy.svg and accuracy.png to `out`."""
    from kdflow.report.experiment_figure import draw

    results = collect(experiment, teacher, records)
    files.write_text(out / "table.md", markdown(results))
    for suffix in ("svg", "png"):
        with files.atomic_write(out / f"accuracy.{suffix}") as beside:
            draw(results, beside, suffix)
