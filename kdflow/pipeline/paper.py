"""The stages of a paper: one function per kind of stage."""

from __future__ import annotations

from kdflow import config
from kdflow.launch import parallel_runs
from kdflow.paper import Paper, cells
from kdflow.pipeline import project_folder, work_dir
from kdflow.pipeline.distill import distill_students
from kdflow.pipeline.evaluate import evaluate_students
from kdflow.pipeline.logits import write_views
from kdflow.pipeline.prepare import prepare_dataset
from kdflow.pipeline.teacher import make_teacher
from kdflow.training import record


def prepare(paper: Paper, dataset: str) -> None:
    """Write a dataset and its description.

    Raises:
        UserError: the paper has no such dataset, or it has no reader yet.
    """
    teachers = {teacher.dataset: name for name, teacher in paper.teachers.items()}
    if dataset not in teachers:
        raise config.unknown_name(f"{paper.folder}: dataset", dataset, teachers)
    config.check_has_reader(paper.folder / "tables.yaml", dataset, paper.recipes)
    data = paper.recipes.datasets[dataset].data
    experiment, file = paper.teacher_experiment(teachers[dataset]), paper.data / f"{dataset}.h5"
    prepared = prepare_dataset(experiment, file, work_dir() / "downloads", project=project_folder())
    description = cells.DatasetRecord(
        dataset=dataset, sha256=prepared.sha256, train_images=data.train_images, test_images=data.test_images
    )
    record.write_record(file.with_suffix(".json"), description)


def teacher(paper: Paper, name: str) -> None:
    """Train a teacher, or take its weights from a file, and evaluate it."""
    experiment = paper.teacher_experiment(name)
    dataset = paper.data / f"{experiment.params.dataset}.h5"
    make_teacher(experiment, dataset, paper.data / cells.TEACHERS / name, work_dir(), project_folder())


def cell(paper: Paper, name: str) -> None:
    """Distil a cell's students, evaluate them, and write their records and the record of the cell."""
    planned, out = paper.get_cell(name), cells.cell_folder(paper, name)
    experiment, dataset = paper.experiment(planned), paper.data / f"{planned.dataset}.h5"
    teacher = paper.data / cells.TEACHERS / f"{planned.dataset}-{planned.teacher}" if planned.teacher else None
    students, views_store = out / "students", None
    run = experiment.student_run(planned.method, 0)
    if teacher is not None and run.reads_views:
        views_store = parallel_runs.in_fresh_process(
            write_views, run, experiment.params.compute.device, dataset, teacher, work_dir()
        )
    distill_students(experiment, planned.method, dataset, teacher, views_store, students, work_dir())
    records = parallel_runs.in_fresh_process(
        evaluate_students, experiment, planned.method, dataset, teacher, students, out, out / "metrics.json"
    )
    record.write_record(out / cells.CELL_RECORD, cells.make_cell_record(paper, name, records))


def item(paper: Paper, name: str) -> None:
    """Make a table or figure from the records that exist."""
    from kdflow.report import paper_item

    paper_item.write(paper, name, paper.data / name)
