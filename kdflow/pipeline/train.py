"""Training of the jobs of a stage."""

from __future__ import annotations

from kdflow.config import Compute, Experiment, RunSettings
from kdflow.config.user_code import load_all
from kdflow.core.source import warn_without_commit
from kdflow.launch import parallel_runs, torchrun
from kdflow.training.job import Job


def train(title: str, jobs: list[Job], compute: Compute) -> None:
    """Train all jobs: in parallel with one process each, or one after the other with several processes each."""
    warn_without_commit()
    if compute.processes_per_run > 1 or torchrun.started_by_torchrun():
        torchrun.run_with_torchrun(title, jobs, compute.processes_per_run)
    else:
        parallel_runs.run_parallel(title, jobs, compute.max_parallel_runs)


def check_students(experiment: Experiment) -> None:
    """Check all students before hours of training of their teacher.

    Raises:
        UserError: a part of the user's code cannot be imported, or batch norm needs more than one image.
    """
    load_all(experiment.parts)
    for method in experiment.params.methods:
        check_last_batch(experiment.student_run(method, 0))


def check_last_batch(run: RunSettings) -> None:
    """Refuse a run whose last batch is one image, if its model cannot train on it.

    Raises:
        UserError: batch norm of the model needs more than one image.
    """
    if (run.fitted_images - 1) % run.training.batch_size == 0:
        from kdflow.training.step import check_last_batch_norm

        check_last_batch_norm(run)
