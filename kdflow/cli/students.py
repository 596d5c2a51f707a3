"""The command that distils a student on a folder of images."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdflow.cli.options import Root, Threads
from kdflow.cli.training_options import training_options

if TYPE_CHECKING:
    from kdflow.report.gain import Summary

app = typer.Typer()

ImageFolder = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER|FILE",
        help="Folder of images, or a ZIP archive of one: <class>/, or train/<class>/, val/<class>/ and test/<class>/. "
        "Or a CSV or JSON file with path, label and perhaps split of each image.",
    ),
]
TeacherOption = Annotated[
    list[str],
    typer.Option(
        metavar="MODEL|FILE",
        help="A model, which is trained on the images first, or a file of weights. Given again: an ensemble of all.",
    ),
]
Combine = Annotated[
    str,
    typer.Option(
        metavar="probabilities|logits",
        help="With several teachers: what is averaged, at the temperature of the method.",
    ),
]
StudentModel = Annotated[
    str,
    typer.Option(metavar="MODEL", help="A key of recipes/models.yaml, the name of a torchvision model, or timm:NAME."),
]
Epochs = Annotated[
    int | None,
    typer.Option(min=1, max=10**6, help="Epochs of each student.", show_default="as in recipes/user_folder.yaml"),
]
TeacherEpochs = Annotated[
    int | None, typer.Option(min=1, max=10**6, help="Epochs of the teacher.", show_default="the same as --epochs")
]
TeacherModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The model of a teacher's file of weights. Needed if kdflow did not train it.",
        show_default=False,
    ),
]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An option of the model, such as width_mult=0.5. Can be repeated."),
]
TeacherClassOrder = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|natural|auto",
        help="Order of the outputs of a teacher from a file: by the numbers in the names of the classes, as training "
        "images show, or the names in a text file, one per line.",
        show_default="the names of the classes, sorted as text",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=8,
        max=1024,
        help="Side of the model's input in pixels.",
        show_default="as the initial weights were trained, or else 64",
    ),
]
Side = Annotated[
    int | None,
    typer.Option(
        help="In evaluation, resize the shorter side to this number of pixels before the centre crop.",
        show_default="as in recipes/user_folder.yaml",
    ),
]
TestPart = Annotated[
    str | None,
    typer.Option(
        metavar="val|test",
        help="The only part of the images that is used for testing.",
        show_default="val, and test is measured once at the end",
    ),
]
Compare = Annotated[bool, typer.Option("--compare", help="Also train the student without a teacher, for comparison.")]
OutFolder = Annotated[
    Path, typer.Option(help="Folder for all results. If it has some already, only missing ones are computed.")
]
NoFlip = Annotated[
    bool, typer.Option("--no-flip", help="Do not mirror images in training, as for text or left and right hands.")
]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out images that cannot be read, instead of stopping.")
]
Cache = Annotated[
    bool, typer.Option("--cache", help="Resize large images once and store them in --out, for faster epochs.")
]

Log = Annotated[
    list[str] | None,
    typer.Option(
        metavar="tensorboard|wandb|mlflow|dvclive",
        help="Also show curves and settings of all runs in this tracker, if it is installed. Can be repeated.",
        show_default="none",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0, help="Processes per run that read image files; 0: none.", show_default="one per usable CPU, at most 8"
    ),
]


@app.command()
@training_options
def distill(
    data: ImageFolder,
    teacher: TeacherOption,
    student: StudentModel,
    method: Annotated[str, typer.Option(help="A key of recipes/methods.yaml.")] = "kd_tlcutmix_pick",
    epochs: Epochs = None,
    ensemble: Combine = "probabilities",
    teacher_epochs: TeacherEpochs = None,
    teacher_model: TeacherModel = None,
    teacher_classes: TeacherClassOrder = None,
    teacher_option: ModelOptions = None,
    student_option: ModelOptions = None,
    image_size: ImageSize = None,
    side: Side = None,
    test_part: TestPart = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Number of students, with seeds 0, 1, ...")] = 1,
    compare: Compare = False,
    out: OutFolder = Path("out"),
    no_flip: NoFlip = False,
    skip_broken: SkipBroken = False,
    cache: Cache = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    threads: Threads = 1,
    workers: Workers = None,
    log: Log = None,
    root: Root = Path(),
    *,
    training: dict[str, Any],
) -> None:
    """Distil a student on a folder of images. Neither params.yaml nor DVC is needed."""
    from kdflow import config
    from kdflow.pipeline import distill_options, one_command

    init = {role: training.pop(role, None) for role in ("teacher_init", "student_init")}
    folder = {"folder": str(data), "image_size": image_size or distill_options.default_image_size(init.values(), root)}
    folder |= {"side": side, "flip": not no_flip, "skip_broken": skip_broken, "test_part": test_part, "cache": cache}
    compute = distill_options.COMPUTE | {"device": device, "threads": threads}
    options = {
        "data": folder,
        "teacher": teacher[0],
        "more_teachers": tuple(teacher[1:]),
        "ensemble": ensemble,
        "student": student,
        "method": method,
        "out": out,
        "epochs": epochs,
        "teacher_epochs": teacher_epochs,
        "teacher_model": teacher_model,
        "teacher_classes": teacher_classes,
        "teacher_options": tuple(teacher_option or ()),
        "student_options": tuple(student_option or ()),
        "seeds": seeds,
        "compare": compare,
        "temperature": training.pop("temperature", None),
        "training": training,
        "precision": dict.fromkeys(("student", "teacher"), "bfloat16" if training.pop("amp") else "float32"),
        "compute": compute | {"loader_workers": workers, "log": log or ()},
    } | init
    checked = config.settings_from_options("kdflow distill", distill_options.DistillOptions, options)
    _print_summary(one_command.distill(checked, root), out)


def _print_summary(summary: Summary, out: Path) -> None:
    from rich.table import Table

    from kdflow.cli.tables import print_whole
    from kdflow.report.gain import columns, rows

    table = Table(title=summary.title, title_justify="left")
    for i, column in enumerate(columns(summary)):
        table.add_column(column, justify="right" if i > 1 else "left")
    for row in rows(summary):
        table.add_row(*row)
    print_whole(table)
    best = summary.models[1].weights[0]
    for warning in summary.warnings:
        typer.echo(warning)
    typer.echo(f"teacher: {summary.teacher_source}\n{summary.compression}\n{summary.verdict}")
    if summary.final_test:
        typer.echo(summary.final_test)
    if summary.budget_note:
        typer.echo(f"Not a full run: {summary.budget_note}.")
    typer.echo(f"summary: {out / 'summary.json'}")
    if summary.student_is_useful:
        command = shlex.join(["kdflow", "export", str(best), "--format", "onnx", "--out", "student.onnx"])
        typer.echo(f"next: {command}")
