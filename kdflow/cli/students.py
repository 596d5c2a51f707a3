"""Commands for one student: export it, predict with an exported file, and distil in one command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdflow.cli.options import PAPER, PaperFolder, Root
from kdflow.cli.training_options import training_options
from kdflow.core.errors import UserError, escape_control

if TYPE_CHECKING:
    from kdflow.export.export import ExportReport
    from kdflow.export.predict import Prediction
    from kdflow.report.gain import Summary

app = typer.Typer()

Threads = Annotated[int, typer.Option(min=1, max=1024, help="Number of CPU threads.")]


@app.command()
def export(
    student: Annotated[
        str,
        typer.Argument(
            metavar="CELL|METHOD|TEACHER|FILE",
            help="A cell or teacher of the paper, a method of params.yaml, 'teacher' for the teacher of params.yaml, "
            "or a file of weights.",
        ),
    ],
    format_name: Annotated[
        str, typer.Option("--format", metavar="onnx|pt2|safetensors", help="Format of the exported file.")
    ] = "onnx",
    seed: Annotated[
        int | None, typer.Option(help="Seed of the student, for a cell or a method.", show_default="the lowest")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write.", show_default="DATASET-STUDENT-METHOD-seedN in the working directory"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The prepared dataset, an .h5 file.", show_default="searched for in the folders above the weights"
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="The teacher's weights, to measure its latency too.",
            show_default="searched for in the folders above the weights",
        ),
    ] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Do not verify the file on test images: the dataset or its images are gone."),
    ] = False,
    threads: Threads = 1,
    paper: PaperFolder = PAPER,
    root: Root = Path(),
) -> None:
    """Export a student or teacher to one file, verify it on test images, and compare its latency with the teacher's."""
    from kdflow import config
    from kdflow.config import user_code
    from kdflow.export import export, locate

    if no_verify and data is not None:
        raise UserError("--no-verify: the dataset is not read; leave out --data")
    weights = locate.find_weights(student, seed, paper, root)
    inputs = locate.locate_inputs(weights, data, teacher, needs_dataset=not no_verify)
    models = config.load_recipes(root).models.values()
    user_code.check_trusted(weights, inputs.log.settings.model.family, {model.family for model in models})
    inputs.log.settings.check_user_code([inputs.log.settings.model.family])
    file, report = export.export(inputs, format_name, out, threads)
    typer.echo(f"{file}: {report.verification or 'not verified on test images (--no-verify)'}")
    _print_costs(report, inputs.role)
    if report.teacher is None and inputs.log.settings.teacher is not None:
        typer.echo("The teacher was not measured: its weights were not found. Give the file by --teacher.")
    rest = shlex.join(["--model", str(file), *(["--trust"] if format_name == "pt2" else [])])
    typer.echo(f"report: {export.report_path(file)}\nnext: kdflow predict IMAGE... {rest}")


def _print_costs(report: ExportReport, role: str) -> None:
    from rich.table import Table

    from kdflow.cli.tables import print_whole

    machine = f"{report.machine.platform}, {report.threads} of {report.machine.cpus} CPU threads"
    table = Table(title=f"{report.format} on {machine}", title_justify="left")
    latencies = [f"ms, batch {batch_size}" for batch_size in report.student.latency_ms]
    for i, column in enumerate(("", "File MB", "Params 1e6", "GFLOPs", *latencies)):
        table.add_column(column, justify="right" if i else "left")
    rows = []
    for name, cost in (("teacher", report.teacher), (role, report.student)):
        if cost is not None:
            rows.append([cost.file_bytes / 1e6, cost.params / 1e6, cost.flops / 1e9, *cost.latency_ms.values()])
            table.add_row(f"{name} {cost.model}", *(f"{value:.3f}" for value in rows[-1]))
    if report.teacher is not None:
        table.add_row("teacher / student", *(f"{a / b:.2f}" for a, b in zip(*rows, strict=True)))
    print_whole(table)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files of any size.")],
    model: Annotated[Path, typer.Option(help="A file that `kdflow export` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every digit.")] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Run a .pt2 file, or a model of your code. It may run any code, so its source must be trusted.",
        ),
    ] = False,
    threads: Threads = 1,
) -> None:
    """Print the five most likely classes of each image, with their probabilities."""
    from kdflow.config.user_code import search_in
    from kdflow.export.predict import predict

    if trust:
        search_in(Path())  # for a model of the user's code
    predictions = predict(images, model, threads, trusted=trust)
    if as_json:
        typer.echo(json.dumps([prediction.model_dump() for prediction in predictions], indent=2))
    elif any(prediction.classes for prediction in predictions):
        _print_predictions(predictions)
    errors = [prediction.error for prediction in predictions if prediction.error is not None]
    if errors:
        raise UserError("\n".join(errors))


def _print_predictions(predictions: list[Prediction]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from kdflow.cli.tables import print_whole
    from kdflow.export.predict import TOP_K

    table = Table("image", *(str(rank + 1) for rank in range(TOP_K)))
    for prediction in predictions:
        if prediction.error is None:
            classes = [f"{name} {100 * p:.1f} %" for name, p in prediction.classes]
            table.add_row(*(escape(escape_control(text)) for text in (prediction.image, *classes)))
    print_whole(table)


ImageFolder = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER|FILE",
        help="Folder of images, or a ZIP archive of one: <class>/, or train/<class>/, val/<class>/ and test/<class>/. "
        "Or a CSV or JSON file with path, label and perhaps split of each image.",
    ),
]
TeacherOption = Annotated[
    str, typer.Option(metavar="MODEL|FILE", help="A model, which is trained on the images first, or a file of weights.")
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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    threads: Threads = 1,
    workers: Workers = None,
    root: Root = Path(),
    *,
    training: dict[str, Any],
) -> None:
    """Distil a student on a folder of images. Neither params.yaml nor DVC is needed."""
    from kdflow import config
    from kdflow.pipeline import distill_options, one_command

    initial = {role: training.pop(role, None) for role in ("teacher_init", "student_init")}
    size = image_size or distill_options.default_image_size(initial.values(), root)
    folder = {"folder": str(data), "image_size": size, "side": side}
    folder |= {"flip": not no_flip, "skip_broken": skip_broken, "test_part": test_part}
    dtype = "bfloat16" if training.pop("amp") else "float32"
    options = {
        "data": folder,
        "teacher": teacher,
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
        "precision": {"student": dtype, "teacher": dtype},
        "compute": distill_options.COMPUTE | {"device": device, "threads": threads, "loader_workers": workers},
    }
    checked = config.settings_from_options("kdflow distill", distill_options.DistillOptions, options | initial)
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
