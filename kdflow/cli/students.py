"""Commands about one student: distilled the short way, out of the house, and what it says of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdflow.cli.options import PAPER, PaperFolder, Root
from kdflow.core.errors import UserError, escape_control

if TYPE_CHECKING:
    from kdflow.export.export import Report
    from kdflow.report.gain import Summary

app = typer.Typer()

Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]


@app.command()
def export(
    what: Annotated[
        str, typer.Argument(metavar="CELL|METHOD|FILE", help="A cell, a method of params.yaml, or a student's weights.")
    ],
    form: Annotated[str, typer.Option("--format", help="onnx, pt2 or safetensors.")] = "onnx",
    seed: Annotated[int | None, typer.Option(help="Of a cell or method; else the first.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file; else a name of student, method and seed, here.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="The dataset's .h5; else it is looked for above the weights.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="The teacher's weights, to be timed beside; else looked for.")
    ] = None,
    threads: Threads = 1,
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """Write a student as one file for use elsewhere, verified on test images and timed beside its teacher."""
    from kdflow.export import export, locate

    found = locate.locate_inputs(locate.find_weights(what, seed, paper, root), data, teacher)
    file, report = export.export(found, form, out, threads)
    typer.echo(f"{file}: {report.verified}")
    _print_costs(report)
    if report.teacher is None and found.log.settings.teacher is not None:
        typer.echo("the teacher's weights were not found, so it is not measured; name them by --teacher")
    trust = " --trust" if form == "pt2" else ""
    typer.echo(f"report: {export.report_path(file)}\nnext: kdflow predict IMAGE... --model {file}{trust}")


def _print_costs(report: Report) -> None:
    from rich.table import Table

    from kdflow.cli.tables import print_whole

    machine = f"{report.machine.platform}, {report.threads} of {report.machine.cpus} CPUs' threads"
    shown = Table(title=f"{report.form} on {machine}", title_justify="left")
    batches = list(report.student.milliseconds)
    for i, head in enumerate(("", "File MB", "Params 1e6", "GFLOPs", *(f"ms, batch {batch}" for batch in batches))):
        shown.add_column(head, justify="right" if i else "left")
    columns = []
    for role, cost in (("teacher", report.teacher), ("student", report.student)):
        if cost is not None:
            columns.append([cost.bytes / 1e6, cost.params / 1e6, cost.flops / 1e9, *cost.milliseconds.values()])
            shown.add_row(f"{role} {cost.model}", *(f"{value:.3f}" for value in columns[-1]))
    if report.teacher is not None:
        shown.add_row("teacher / student", *(f"{a / b:.2f}" for a, b in zip(*columns, strict=True)))
    print_whole(shown)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...")],
    model: Annotated[Path, typer.Option(help="What `kdflow export` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every digit.")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Run a .pt2, which is a program, not only weights.")] = False,
    threads: Threads = 1,
) -> None:
    """Print the five likeliest classes of each image by an exported student."""
    from rich.markup import escape
    from rich.table import Table

    from kdflow.cli.tables import print_whole
    from kdflow.export.predict import TOP, predict

    said = predict(images, model, threads, trusted=trust)
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in said], indent=2))
    elif any(one.classes for one in said):
        shown = Table("image", *(str(place + 1) for place in range(TOP)))
        for one in said:
            if one.error is None:
                shown.add_row(
                    *(
                        escape(escape_control(text))
                        for text in (one.image, *(f"{name} {100 * p:.1f} %" for name, p in one.classes))
                    )
                )
        print_whole(shown)
    broken = [one.error for one in said if one.error is not None]
    if broken:
        raise UserError("\n".join(broken))


@app.command()
def distill(
    data: Annotated[Path, typer.Option(help="A folder with <class>/, or with train/<class>/ and val/<class>/.")],
    teacher: Annotated[
        str, typer.Option(metavar="MODEL|FILE", help="A model, trained first on the same images; or a file of weights.")
    ],
    student: Annotated[
        str, typer.Option(metavar="MODEL", help="A key of recipes/models.yaml, torchvision's name, or timm:NAME.")
    ],
    method: Annotated[str, typer.Option(help="A key of recipes/methods.yaml.")] = "kd_tlcutmix_pick",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of a student; else those of recipes/user_folder.yaml.")
    ] = None,
    teacher_epochs: Annotated[int | None, typer.Option(min=1, help="Of a teacher; else as many.")] = None,
    teacher_model: Annotated[str | None, typer.Option(help="What a file of weights is, if it does not say so.")] = None,
    image_size: Annotated[int, typer.Option(min=8, max=1024, help="Pixels of a side.")] = 64,
    side: Annotated[
        int | None,
        typer.Option(help="Pixels of the shorter side before the crop; else as in recipes/user_folder.yaml."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How many students: seeds 0, 1, ...")] = 1,
    compare: Annotated[bool, typer.Option("--compare", help="Train the student on the labels alone as well.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for all that is made; given again, it goes on there.")] = Path(
        "out"
    ),
    no_flip: Annotated[bool, typer.Option("--no-flip", help="Mirror images are of another class.")] = False,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave out what cannot be read.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    threads: Threads = 1,
    root: Root = Path(),
) -> None:
    """Distil one student from a folder of images, without params.yaml and DVC."""
    from kdflow import config
    from kdflow.pipeline import one_command

    folder = {"folder": str(data), "image_size": image_size, "side": side}
    folder |= {"flip": not no_flip, "skip_broken": skip_broken}
    compute = {
        "device": device,
        "threads": threads,
        "max_parallel_runs": None,
        "processes_per_run": 1,
        "replay_gb": 50.0,
    }
    asked = one_command.DistillOptions(
        data=config.settings_from_options("kdflow distill", config.UserFolder, folder),
        teacher=teacher,
        student=student,
        method=method,
        out=out,
        epochs=epochs,
        teacher_epochs=teacher_epochs,
        teacher_model=teacher_model,
        seeds=seeds,
        compare=compare,
        compute=config.settings_from_options("kdflow distill", config.Compute, {**compute, "loader_workers": None}),
    )
    _print_summary(one_command.distill(asked, root), out)


def _print_summary(summary: Summary, out: Path) -> None:
    from rich.table import Table

    from kdflow.cli.tables import print_whole
    from kdflow.report.gain import COLUMNS, rows

    shown = Table(title=summary.title, title_justify="left")
    for i, column in enumerate(COLUMNS):
        shown.add_column(column, justify="right" if i > 1 else "left")
    for row in rows(summary):
        shown.add_row(*row)
    print_whole(shown)
    best = summary.models[1].weights[0]
    if summary.warning:
        typer.echo(summary.warning)
    typer.echo(f"teacher: {summary.teacher_source}\n{summary.smaller}\n{summary.verdict}")
    if summary.budget_note:
        typer.echo(f"Not a full run: {summary.budget_note}.")
    typer.echo(f"summary: {out / 'summary.json'}\nnext: kdflow export {best} --format onnx --out student.onnx")
