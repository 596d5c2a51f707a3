"""Tables and figures from records: this module has those of the experiment. Never imports torch."""

from __future__ import annotations

import json
from pathlib import Path

from kdflow.config import Experiment
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.report.experiment_plots import plot_data
from kdflow.report.experiment_table import ExperimentResults, markdown
from kdflow.training import record
from kdflow.training.record import RunRecord, TeacherRecord


def collect(experiment: Experiment, teacher: Path, records: Path) -> ExperimentResults:
    """Read an experiment's records, a list for each method in the order of params.yaml.

    Raises:
        UserError: a record is missing, or was made with other settings.
    """
    params = experiment.params
    teacher_record = record.read_record(teacher, TeacherRecord)
    _check_settings(teacher, teacher_record.architecture == params.teacher)
    experiment = experiment.model_copy(update={"teacher_normalisation": teacher_record.normalisation})
    runs: dict[str, list[RunRecord]] = {method: [] for method in params.methods}
    for method, records_of_method in runs.items():
        for seed in params.seeds:
            file = records / method / f"seed{seed}.json"
            run = record.read_record(file, RunRecord)
            if params.teacher_init is None and params.student_init is None:  # else DVC compares the settings
                _check_settings(file, run.settings == experiment.student_run(method, seed))
            records_of_method.append(run)
    return ExperimentResults(params.dataset_name, params.student, teacher_record, runs)


def _check_settings(file: Path, same: bool) -> None:
    if not same:
        raise UserError(f"{file}: made with other settings than those of params.yaml; `dvc repro` makes it again")


def write(experiment: Experiment, teacher: Path, records: Path, out: Path) -> None:
    """Write table.md, accuracy.svg and accuracy.png to `out`, and the data of DVC's plots to `out`/plots."""
    from kdflow.report.experiment_figure import draw

    results = collect(experiment, teacher, records)
    files.write_text(out / "table.md", markdown(results))
    for name, rows in plot_data(results).items():
        files.write_text(out / "plots" / f"{name}.json", json.dumps(rows, indent=1) + "\n")
    for suffix in ("svg", "png"):
        with files.atomic_write(out / f"accuracy.{suffix}") as beside:
            draw(results, beside, suffix)
