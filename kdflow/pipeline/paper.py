"""What the stages of a paper do: each reads the outputs of earlier stages and writes its own."""

from __future__ import annotations

from kdflow import config, pipeline
from kdflow.launch import parallel_runs
from kdflow.paper import cells
from kdflow.paper.paper import Paper
from kdflow.paper.tables import DisagreementFigure
from kdflow.pipeline import work_dir
from kdflow.training import record


def prepare(paper: Paper, dataset: str) -> None:
    """Write a dataset and what is to be known of it.

    Raises:
        UserError: the paper has no such dataset, or it has no reader yet.
    """
    names = {teacher.dataset: name for name, teacher in paper.teachers.items()}
    if dataset not in names:
        raise config.unknown_name(f"{paper.folder}: dataset", dataset, names)
    config.check_has_reader(paper.folder / "tables.yaml", dataset, paper.recipes)
    data, out = paper.recipes.datasets[dataset].data, paper.data / f"{dataset}.json"
    found = pipeline.prepare(
        paper.teacher_experiment(names[dataset]), paper.data / f"{dataset}.h5", work_dir() / "downloads"
    )
    note = cells.DatasetRecord(
        dataset=dataset, sha256=found.sha256, train_images=data.train_images, test_images=data.test_images
    )
    record.write_record(out, note)


def teacher(paper: Paper, name: str) -> None:
    """Train a teacher, or take its weights from a file, and measure it."""
    experiment = paper.teacher_experiment(name)
    dataset = paper.data / f"{experiment.params.dataset}.h5"
    pipeline.teacher(experiment, dataset, paper.data / cells.TEACHERS / name, work_dir())


def cell(paper: Paper, name: str) -> None:
    """Distil a cell's students, measure them, and write records, figures and what they were made from."""
    wanted, out = paper.cell_named(name), cells.cell_folder(paper, name)
    experiment, dataset = paper.experiment(wanted), paper.data / f"{wanted.dataset}.h5"
    asked = paper.data / cells.TEACHERS / f"{wanted.dataset}-{wanted.teacher}" if wanted.teacher else None
    students = out / "students"
    pipeline.distill(experiment, wanted.method, dataset, asked, None, students, work_dir())
    records = parallel_runs.in_fresh_process(
        pipeline.evaluate, experiment, wanted.method, dataset, asked, students, out, out / "metrics.json"
    )
    record.write_record(out / cells.NOTE, cells.make_cell_record(paper, name, records))


def part(paper: Paper, name: str) -> None:
    """Make a table or figure from the records that are there."""
    found, out = paper.part_named(name), paper.data / name
    if isinstance(found, DisagreementFigure):
        pair = paper.recipes.pairs[found.pair]
        key = f"{found.dataset}-{pair.teacher}"
        experiment = paper.teacher_experiment(key)
        asked = paper.data / cells.TEACHERS / key
        pipeline.disagreement(experiment, found.view, paper.data / f"{found.dataset}.h5", asked, out)
        return
    from kdflow.report import paper_part

    paper_part.write(paper, name, out)
