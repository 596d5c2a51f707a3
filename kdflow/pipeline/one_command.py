"""One distillation in one command, from a folder of photos to a student, without params.yaml and DVC.

It builds an experiment in memory and calls the stages' functions, with output folders as in the experiment of
params.yaml. Called again with the same folder, it makes only what is missing or out of date.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kdflow import config
from kdflow.config import Experiment, Settings
from kdflow.config.user_code import load_all
from kdflow.core import files, trackers
from kdflow.core.errors import UserError
from kdflow.launch import parallel_runs
from kdflow.pipeline import TEACHER_CLASSES
from kdflow.pipeline.distill import student_jobs
from kdflow.pipeline.distill_options import STUDENTS, TEACHER, WEIGHTS, DistillOptions, make_experiment
from kdflow.pipeline.evaluate import evaluate_students, measure_final_test
from kdflow.pipeline.prepare import prepare_dataset
from kdflow.pipeline.teacher import make_ensemble, make_teacher, member_folder
from kdflow.pipeline.train import train
from kdflow.report import gain
from kdflow.report.gain import BASELINE
from kdflow.teachers.initial_weights import with_initial_weights, with_teacher_record
from kdflow.training import record
from kdflow.training.job import Job
from kdflow.training.record import RunLog, RunRecord, TeacherRecord

if TYPE_CHECKING:
    from kdflow.models.cost import Cost

R = TypeVar("R", bound=Settings)


def distill(options: DistillOptions, root: Path) -> gain.Summary:
    """Prepare the data, take or train the teacher, distil and evaluate; write all outputs and a summary to `out`.

    Raises:
        UserError: an option names something that does not exist or does not fit the others; nothing is trained then.
    """
    from kdflow.models import cost

    trackers.require(options.compute.log)
    out, experiment = options.out, make_experiment(options, config.load_recipes(root))
    experiment = with_initial_weights(experiment, root)
    load_all(experiment.parts)
    if out.resolve().is_relative_to(files.expand_home(options.data.folder).resolve()):
        raise UserError(f"--out: {out}: is within --data, where it would be taken for a class; name another folder")
    dataset, teacher, work_dir = out / "dataset.h5", out / TEACHER, out / ".kdflow"
    final_test = work_dir / "final_test.h5"
    with files.exclusive_folder(work_dir, f"{out}", print):
        downloads, description = work_dir / "downloads", out / "dataset.json"
        prepared = prepare_dataset(experiment, dataset, downloads, description, final_test=final_test)
        sha256, datasets = prepared.sha256, {prepared.name: prepared.dataset}
        experiment = experiment.model_copy(update={"prepared": prepared, "datasets": datasets})
        pair = (experiment.params.teacher, experiment.params.student)
        costs = [row.cost for row in cost.compare(experiment, prepared.name, pair)]
        if costs[1].params > costs[0].params:
            print(f"warning: the student {pair[1]} has more parameters than the teacher {pair[0]}")
        _make_teacher(experiment, dataset, sha256, teacher, work_dir)
        experiment = with_teacher_record(experiment, teacher)
        methods = experiment.params.methods
        students = {method: out / STUDENTS / method for method in methods}
        jobs = _jobs(experiment, dataset, teacher, students, work_dir)
        teacher_sha256 = files.sha256(teacher / WEIGHTS)
        missing = [job for job in jobs if not _is_finished(job, sha256, teacher_sha256)]
        if missing:
            train(f"{experiment.params.student}", missing, options.compute)
        records = {
            method: parallel_runs.in_fresh_process(
                evaluate_students,
                *(experiment, method, dataset, teacher, students[method]),
                *(out / "records" / method, out / "metrics" / f"{method}.json"),
            )
            for method in methods
        }
        summary = _summary(experiment, dataset, teacher, students, records, costs)
        if final_test.is_file():
            models = [(experiment.teacher_run(), teacher / WEIGHTS), *((job.run, job.weights) for job in jobs)]
            measured = parallel_runs.in_fresh_process(measure_final_test, experiment, final_test, models)
            summary = summary.with_final_test(*measured)
    record.write_record(out / "summary.json", summary)
    return summary


# --- finished parts ----------------------------------------------------------------------------------------


def _make_teacher(experiment: Experiment, dataset: Path, sha256: str, out: Path, work_dir: Path) -> None:
    """Make the teacher, or each member of an ensemble, unless a finished one with these settings exists."""
    members = experiment.members()
    if not members:
        _make_model(experiment, 0, dataset, sha256, out, work_dir)
        return
    for index, (member, seed) in enumerate(members):
        _make_model(member, seed, dataset, sha256, member_folder(out, index), work_dir)
    make_ensemble(experiment, dataset, out)


def _make_model(experiment: Experiment, seed: int, dataset: Path, sha256: str, out: Path, work_dir: Path) -> None:
    run, weights, given = experiment.teacher_run(seed), out / WEIGHTS, experiment.params.teacher_weights.file
    trained = given is None
    complete = (out / TEACHER_CLASSES).is_file() and _read_or_none(out / "record.json", TeacherRecord) is not None
    if trained and complete and _matches(out / "training.json", weights, run.sha256, sha256, None):
        print(f"teacher {run.architecture}: exists")
        return
    if given is not None and Path(given).resolve() != weights.resolve():
        (out / "training.json").unlink(missing_ok=True)  # of an earlier teacher that was trained
    make_teacher(experiment, dataset, out, work_dir, seed=seed)


def _jobs(experiment: Experiment, dataset: Path, teacher: Path, students: dict[str, Path], work_dir: Path) -> list[Job]:
    """Return the jobs of all methods, with names and run indices that are unique among them."""
    jobs = [
        (method, job)
        for method, out in students.items()
        for job in student_jobs(experiment, method, dataset, teacher, None, out, work_dir)
    ]
    return [
        job.model_copy(update={"name": f"{method} {job.name}", "run_index": index})
        for index, (method, job) in enumerate(jobs)
    ]


def _is_finished(job: Job, dataset: str, teacher: str) -> bool:
    return _matches(job.log, job.weights, job.run.sha256, dataset, None if job.teacher is None else teacher)


def _matches(log: Path, weights: Path, settings: str, dataset: str, teacher: str | None) -> bool:
    """Return whether the log is of a run with these hashes and this code, and the weights are that run's."""
    run = _read_or_none(log, RunLog)
    if run is None or not weights.is_file():
        return False
    expected = (settings, dataset, teacher, record.code_sha256(), files.sha256(weights))
    actual = (run.settings_sha256, run.dataset_sha256, run.teacher_sha256, run.code.sha256, run.weights_sha256)
    return actual == expected


def _read_or_none(file: Path, kind: type[R]) -> R | None:
    """Read a record; None if it is missing, was changed, or was written by another version."""
    try:
        return record.read_record(file, kind)
    except UserError:
        return None


# --- summary -----------------------------------------------------------------------------------------------


def _summary(
    experiment: Experiment,
    dataset: Path,
    teacher: Path,
    students: dict[str, Path],
    records: dict[str, list[RunRecord]],
    costs: list[Cost],
) -> gain.Summary:
    from kdflow.data import largest_class

    params, data = experiment.params, experiment.dataset.data
    teacher_record = record.read_record(teacher / "record.json", TeacherRecord)
    (teacher_cost, student_cost), method = [(cost.params, cost.flops) for cost in costs], params.methods[-1]
    weights = str(teacher / WEIGHTS)
    rows = [gain.teacher_row(params.teacher, teacher_record, teacher_cost, weights)]
    for name in (method, *params.methods[:-1]):
        paths = [str(students[name] / f"seed{seed}.safetensors") for seed in params.seeds]
        rows.append(gain.student_row(name, records[name], student_cost, paths))
    notes = [run.budget.budget_note for runs in records.values() for run in runs]
    results, majority_accuracy = records[method], largest_class(dataset)
    measured = None
    if BASELINE in records:
        measured = gain.compute_gain(results, records[BASELINE], data.test_images, majority_accuracy)
    return gain.Summary(
        dataset=params.dataset_name,
        classes=data.classes,
        image_size=data.image_size,
        train_images=data.train_images,
        test_images=data.test_images,
        epochs=results[0].settings.training.epochs,
        budget_note="; ".join(record.distinct_notes([teacher_record.budget_note, *notes])),
        teacher_source=teacher_record.source,
        teacher_trained=not params.teacher_weights.are_given,
        majority_accuracy=majority_accuracy,
        models=tuple(rows),
        gain=measured,
    )
