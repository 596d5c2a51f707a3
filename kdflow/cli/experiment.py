"""Commands about the experiment in params.yaml, and the recipes."""

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
    """Check params.yaml and recipes/ without running anything."""
    from kdflow import config

    experiment = config.load(root)
    params = experiment.params
    typer.echo(
        f"settings are valid: {params.dataset_name}, {params.teacher} -> {params.student}, "
        f"{len(params.methods)} methods x {len(params.seeds)} seeds"
    )


@app.command()
def cost(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Keys of recipes/models.yaml, the teacher first; none: all pairs."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A key of recipes/datasets.yaml; without it, that of params.yaml.")
    ] = None,
    root: Root = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every digit.")] = False,
) -> None:
    """Count parameters and FLOPs of models, or of a dataset's pairs in recipes/pairs.yaml."""
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
    shown = Table(title=f"{dataset}: 3 x {size} x {size}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(cost.COLUMNS):
        shown.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        if row.ratios is None:
            shown.add_section()
        shown.add_row(*cost.format_row(row))
    console = print_whole(shown)
    for line in cost.NOTES:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def methods(root: Root = Path()) -> None:
    """Print what every method and its parts are, as Markdown (docs/methods.md)."""
    from kdflow import config
    from kdflow.report.methods_page import page

    typer.echo(page(config.load(root).methods), nl=False)


@app.command()
def disagreement(
    view: Annotated[str, typer.Option(help="A strong view.")] = "cutmix",
    out: Annotated[Path, typer.Option(help="Folder for disagreement.json, samples.png and samples.svg.")] = Path(
        "data/disagreement"
    ),
    root: Root = Path(),
) -> None:
    """Count the strong views whose label the teacher sees otherwise, and show some (needs `dvc repro teacher`)."""
    from kdflow import config
    from kdflow.pipeline.disagreement import write_disagreement

    experiment = config.load(root)
    data = root / "data"
    write_disagreement(experiment, view, data / "dataset.h5", data / "teacher", out)


logits_app = typer.Typer(help="The teacher's logits, kept for other runs.", no_args_is_help=True)
app.add_typer(logits_app, name="logits")


@logits_app.command("estimate")
def estimate_logits(
    float32: Annotated[bool, typer.Option("--float32", help="Keep every digit.")] = False, root: Root = Path()
) -> None:
    """Print what each store of logits would cost and save in the experiment of params.yaml; nothing is filled."""
    from rich.console import Console
    from rich.table import Table

    from kdflow import config
    from kdflow.training.device import pick_device
    from kdflow.training.teacher_logits import estimate

    experiment = config.load(root)
    params = experiment.params
    found = estimate.estimate(experiment, "float32" if float32 else "float16", pick_device(params.compute.device))
    epochs = experiment.student_run(params.methods[0], 0).training.epochs
    title = (
        f"{params.teacher} teaches {len(params.methods)} methods x {len(params.seeds)} seeds x {epochs} epochs of "
        f"{experiment.train_images:,} images ({params.dataset_name}), "
        f"about {found.speed:,.0f} views/s on {found.device}"
    )
    shown = Table(title=title, title_justify="left")
    for i, column in enumerate(("logits", "GB on disk", "Teacher hours ahead", "during training", "in all")):
        shown.add_column(column, justify="right" if i else "left")
    for cost in found.costs:
        ahead, during = cost.views_ahead, cost.views_in_training
        hours = [f"{found.hours(views):.2f}" for views in (ahead, during, ahead + during)]
        shown.add_row(cost.source, f"{cost.size / 1e9:.3f}", *hours)
    Console().print(shown)
    typer.echo("replay pays from the second method or student of a teacher and seed on, and costs disk alone.")
    if found.break_even_epochs is not None:
        typer.echo(
            f"views needs fewer teacher hours from {found.break_even_epochs} epochs on, over all methods and seeds; "
            f"this experiment has {found.epochs}."
        )
