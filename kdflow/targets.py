"""What the stages of a paper do: each reads the outputs of earlier stages and writes its own."""

from __future__ import annotations

from kdflow import cells, config, pipeline, record, side_by_side
from kdflow.pipeline import scratch
from kdflow.plan import Disagreement, Paper


def prepare(paper: Paper, dataset: str) -> None:
    """Write a dataset and what is to be known of it.

    Raises:
        UserError: the paper has no such dataset, or it has no reader yet.
    """
    names = {teacher.dataset: name for name, teacher in paper.teachers.items()}
    if dataset not in names:
        raise config.unknown(f"{paper.folder}: dataset", dataset, names)
    config.check_readable(paper.folder / "tables.yaml", dataset, paper.recipes)
    data, out = paper.recipes.datasets[dataset].data, paper.data / f"{dataset}.json"
    found = pipeline.prepare(
        paper.teacher_experiment(names[dataset]), paper.data / f"{dataset}.h5", scratch() / "downloads"
    )
    note = cells.DatasetRecord(
        dataset=dataset, sha256=found.sha256, train_images=data.train_images, test_images=data.test_images
    )
    record.write(out, note)


def teacher(paper: Paper, name: str) -> None:
    """Train a teacher, or take its weights from a file, and measure it."""
    experiment = paper.teacher_experiment(name)
    dataset = paper.data / f"{experiment.params.dataset}.h5"
    pipeline.teacher(experiment, dataset, paper.data / cells.TEACHERS / name, scratch())


def cell(paper: Paper, name: str) -> None:
    """Distil a cell's students, measure them, and write records, figures and what they were made from."""
    wanted, out = paper.cell_named(name), cells.folder(paper, name)
    experiment, dataset = paper.experiment(wanted), paper.data / f"{wanted.dataset}.h5"
    asked = paper.data / cells.TEACHERS / f"{wanted.dataset}-{wanted.teacher}" if wanted.teacher else None
    students = out / "students"
    pipeline.distill(experiment, wanted.method, dataset, asked, None, students, scratch())
    records = side_by_side.apart(
        pipeline.evaluate, experiment, wanted.method, dataset, asked, students, out, out / "metrics.json"
    )
    record.write(out / cells.NOTE, cells.describe(paper, name, records))


def part(paper: Paper, name: str) -> None:
    """Make a table or figure from the records that are there."""
    found, out = paper.part_named(name), paper.data / name
    if isinstance(found, Disagreement):
        pair = paper.recipes.pairs[found.pair]
        key = f"{found.dataset}-{pair.teacher}"
        experiment = paper.teacher_experiment(key)
        asked = paper.data / cells.TEACHERS / key
        pipeline.disagreement(experiment, found.mix, paper.data / f"{found.dataset}.h5", asked, out)
        return
    from kdflow.report import parts

    parts.write(paper, name, out)
