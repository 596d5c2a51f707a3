"""The stage that distils the students of one method."""

from __future__ import annotations

from pathlib import Path

from kdflow.config import Experiment
from kdflow.pipeline.train import check_last_batch, train
from kdflow.teachers.initial_weights import fetch, with_initial_weights, with_teacher_record
from kdflow.training import record
from kdflow.training.job import Job
from kdflow.training.record import TeacherRecord


def distill_students(
    experiment: Experiment,
    method: str,
    dataset: Path,
    teacher: Path | None,
    views_store: Path | None,
    out: Path,
    work_dir: Path,
) -> None:
    """Distil the student by `method` from every seed; write weights and log of each to `out`."""
    jobs = student_jobs(experiment, method, dataset, teacher, views_store, out, work_dir)
    train(method, jobs, experiment.params.compute)


def student_jobs(
    experiment: Experiment,
    method: str,
    dataset: Path,
    teacher: Path | None,
    views_store: Path | None,
    out: Path,
    work_dir: Path,
) -> list[Job]:
    """Return the jobs of `method`, one per seed.

    `teacher` is the output of its stage, `views_store` the store of all views. They are None for methods and settings
    that need none.
    """
    experiment = with_teacher_record(with_initial_weights(experiment, work_dir.parent), teacher)
    params, found = experiment.params, experiment.initial.get("student")
    initial = None if found is None else fetch(found)
    check_last_batch(experiment.student_run(method, 0))
    jobs = []
    for index, seed in enumerate(params.seeds):
        run = experiment.student_run(method, seed)
        used = teacher if run.teacher is not None else None
        origin = None if used is None else record.read_record(used / "record.json", TeacherRecord)
        job = Job(
            name=f"seed {seed}",
            run=run,
            budget=record.make_budget(run, experiment.dataset, origin.budget if origin else None),
            dataset=dataset,
            teacher=None if used is None else used / "model.safetensors",
            views_store=views_store if run.reads_views else None,
            weights=out / f"seed{seed}.safetensors",
            log=out / f"seed{seed}.json",
            work_dir=work_dir,
            compute=params.compute,
            run_index=index,
            initial=initial,
            teacher_members=tuple(member.sha256 for member in origin.members) if origin else (),
        )
        jobs.append(job)
    return jobs
