"""Commands for the experiment in params.yaml and for the recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdflow.cli.options import Root
from kdflow.cli.tables import print_whole
from kdflow.core.errors import UserError

app = typer.Typer()


@app.command()
def check(root: Root = Path()) -> None:
    """Check params.yaml and recipes/, and import your code that they name, without running anything."""
    from kdflow import config
    from kdflow.config import user_code
    from kdflow.core import trackers

    experiment = config.load(root)
    user_code.load_all(experiment.parts)
    params = experiment.params
    trackers.require(params.compute.log)
    typer.echo(
        f"settings are valid: {params.dataset_name}, {params.teacher} -> {params.student}, "
        f"{len(params.methods)} methods x {len(params.seeds)} seeds"
    )


@app.command()
def cost(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Keys of recipes/models.yaml, the teacher first. Without them: all pairs of recipes/pairs.yaml.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A key of recipes/datasets.yaml.", show_default="the dataset of params.yaml")
    ] = None,
    root: Root = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every digit.")] = False,
) -> None:
    """Count parameters and FLOPs of models, and compare them with the teacher's."""
    from rich import box
    from rich.table import Table

    from kdflow import config
    from kdflow.models import cost

    experiment = config.load(root)
    if dataset is None:
        dataset = experiment.params.dataset_name
        experiment = experiment.model_copy(update={"datasets": {**experiment.datasets, dataset: experiment.dataset}})
    try:
        rows = cost.compare(experiment, dataset, models or [])
    except UserError as error:
        raise UserError(f"kdflow cost: {error}") from None
    if as_json:
        typer.echo(cost.as_json(rows))
        return
    size = experiment.datasets[dataset].data.image_size
    table = Table(title=f"{dataset}: 3 x {size} x {size}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(cost.COLUMNS):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        if row.ratios is None:
            table.add_section()
        table.add_row(*cost.format_row(row))
    console = print_whole(table)
    for line in cost.NOTES:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def methods(
    find: Annotated[str | None, typer.Option(help="A method, or a part such as a loss: describe this one.")] = None,
    root: Root = Path(),
) -> None:
    """Describe all methods and their parts as Markdown. The output is docs/methods.md."""
    from kdflow import config
    from kdflow.report import methods_page

    recipes = config.load(root).methods
    typer.echo(methods_page.page(recipes) if find is None else methods_page.find(recipes, find), nl=False)


@app.command()
def disagreement(
    view: Annotated[str, typer.Option(help="A strong view, such as cutmix or mixup.")] = "cutmix",
    out: Annotated[Path, typer.Option(help="Folder for disagreement.json, samples.png and samples.svg.")] = Path(
        "data/disagreement"
    ),
    root: Root = Path(),
) -> None:
    """Count the strong views for which teacher and mixed label disagree, and draw some (after `dvc repro teacher`)."""
    from kdflow import config
    from kdflow.report.disagreement import write_disagreement

    experiment = config.load(root)
    data = root / "data"
    write_disagreement(experiment, view, data / "dataset.h5", data / "teacher", out)


logits_app = typer.Typer(help="Stores of teacher logits, which save teacher passes.", no_args_is_help=True)
app.add_typer(logits_app, name="logits")


@logits_app.command("estimate")
def estimate_logits(
    float32: Annotated[bool, typer.Option("--float32", help="Store float32 instead of float16.")] = False,
    root: Root = Path(),
) -> None:
    """Estimate disk space and teacher time for each `teacher_logits` setting of the experiment."""
    from rich.console import Console
    from rich.table import Table

    from kdflow import config
    from kdflow.training.device import pick_device
    from kdflow.training.teacher_logits import estimate

    experiment = config.load(root)
    params = experiment.params
    result = estimate.estimate(experiment, "float32" if float32 else "float16", pick_device(params.compute.device))
    epochs = experiment.student_run(params.methods[0], 0).training.epochs
    title = (
        f"teacher {params.teacher}, about {result.speed:,.0f} views/s on {result.device}; {params.dataset_name}: "
        f"{len(params.methods)} methods x {len(params.seeds)} seeds x {epochs} epochs x "
        f"{experiment.train_images:,} images"
    )
    table = Table(title=title, title_justify="left")
    columns = ("teacher_logits", "GB on disk", "Teacher hours before training", "in training", "total")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for cost in result.costs:
        ahead, during = cost.views_ahead, cost.views_in_training
        hours = [f"{result.hours(views):.2f}" for views in (ahead, during, ahead + during)]
        table.add_row(cost.source, f"{cost.size / 1e9:.3f}", *hours)
    Console().print(table)
    typer.echo(
        "replay saves time from the second method or student with the same teacher and seed. It needs disk space."
    )
    if result.break_even_epochs is not None:
        typer.echo(
            f"views saves time from {result.break_even_epochs} epochs on, summed over all methods and seeds; "
            f"this experiment has {result.epochs}."
        )
