"""Commands for trained students as files: export, predict, benchmark."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdflow.cli.options import PAPER, PaperFolder, Root, Threads
from kdflow.core.errors import UserError, escape_control

if TYPE_CHECKING:
    from kdflow.export.export import ExportReport
    from kdflow.export.predict import Prediction

app = typer.Typer()

NoVerify = Annotated[
    bool,
    typer.Option("--no-verify", help="Do not verify the file on test images: the dataset or its images are gone."),
]
Int8 = Annotated[
    bool,
    typer.Option(
        "--int8",
        help="Weights and activations as 8-bit integers (ONNX), calibrated on training images; the accuracy of both is "
        "measured on all test images.",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run a .pt2 file, or a model of your code. It may run any code, so its source must be trusted.",
    ),
]


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
    no_verify: NoVerify = False,
    int8: Int8 = False,
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
    user_code.check_trusted(weights, inputs.log.settings.model.families, {model.family for model in models})
    inputs.log.settings.check_user_code(inputs.log.settings.model.families)
    file, report = export.export(inputs, format_name, out, threads, int8=int8)
    typer.echo(f"{file}: {report.verification or 'not verified on test images (--no-verify)'}")
    if report.int8 is not None:
        typer.echo(str(report.int8))
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
    rows = {}
    exported = f"{role} in int8" if report.int8 else role
    for name, cost in (("teacher", report.teacher), (f"{role} in float32", report.float32), (exported, report.student)):
        if cost is not None:
            rows[name] = [cost.file_bytes / 1e6, cost.params / 1e6, cost.flops / 1e9, *cost.latency_ms.values()]
            table.add_row(f"{name} {cost.model}", *(f"{value:.3f}" for value in rows[name]))
    last = rows.pop(exported)
    for name, row in rows.items():
        table.add_row(f"{name} / {exported}", *(f"{a / b:.2f}" for a, b in zip(row, last, strict=True)))
    print_whole(table)


@app.command()
def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|FOLDER|PATTERN|-...",
            help="Image files of any size, folders of images, patterns such as 'a/**/*.jpg', or - to read names of "
            "files from standard input, one per line.",
        ),
    ],
    model: Annotated[Path, typer.Option(help="A file that `kdflow export` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every digit.")] = False,
    as_lines: Annotated[bool, typer.Option("--jsonl", help="Print one line of JSON for each image.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with one row for each image.")] = False,
    trust: Trust = False,
    threads: Threads = 1,
) -> None:
    """Print the five most likely classes of each image, with their probabilities."""
    from kdflow.config.user_code import search_in
    from kdflow.export.predict import find_images, predict

    if trust:
        search_in(Path())  # for a model of the user's code
    if as_json + as_lines + as_csv > 1:
        raise UserError("--json, --jsonl, --csv: choose one of them")
    if "-" in images and images != ["-"]:
        raise UserError("IMAGE: - reads all names from standard input; leave out the others")
    names = (line.rstrip("\n") for line in sys.stdin if line.strip()) if images == ["-"] else images
    errors: list[str] = []
    predictions = _collect_errors(predict(find_images(names), model, threads, trusted=trust), errors)
    if as_json:
        typer.echo(json.dumps([prediction.model_dump() for prediction in predictions], indent=2))
    elif as_lines:
        for prediction in predictions:
            typer.echo(json.dumps(prediction.model_dump()))
    elif as_csv:
        _print_csv(predictions)
    else:
        _print_predictions(predictions)
    if errors:
        raise UserError("\n".join(errors))


def _collect_errors(predictions: Iterable[Prediction], errors: list[str]) -> Iterator[Prediction]:
    """Yield the predictions, and add the errors of images that cannot be read to `errors`."""
    for prediction in predictions:
        if prediction.error is not None:
            errors.append(prediction.error)
        yield prediction


def _print_csv(predictions: Iterable[Prediction]) -> None:
    from kdflow.export.predict import TOP_K

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", *(f"{part}_{rank + 1}" for rank in range(TOP_K) for part in ("class", "p")), "error"])
    for prediction in predictions:
        cells = [cell for name, p in prediction.classes for cell in (escape_control(name), repr(p))]
        cells += [""] * (2 * TOP_K - len(cells))
        writer.writerow([escape_control(prediction.image), *cells, escape_control(prediction.error or "")])


def _print_predictions(predictions: Iterable[Prediction]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from kdflow.cli.tables import print_whole
    from kdflow.export.predict import TOP_K

    table = Table("image", *(str(rank + 1) for rank in range(TOP_K)))
    for prediction in predictions:
        if prediction.error is None:
            classes = [f"{name} {100 * p:.1f} %" for name, p in prediction.classes]
            table.add_row(*(escape(escape_control(text)) for text in (prediction.image, *classes)))
    if table.row_count:
        print_whole(table)


@app.command()
def benchmark(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files that `kdflow export` wrote.")],
    batch_sizes: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, max=4096, help="Images in a batch. Can be repeated.", show_default="1 and 64"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every digit.")] = False,
    trust: Trust = False,
    threads: Threads = 1,
) -> None:
    """Measure the latency and throughput of exported files in turns, on the CPU."""
    from rich.markup import escape
    from rich.table import Table

    from kdflow.cli.tables import print_whole
    from kdflow.export import benchmark

    results = benchmark.benchmark(files, batch_sizes or benchmark.BATCH_SIZES, threads, trusted=trust)
    if as_json:
        typer.echo(json.dumps([result.model_dump() for result in results], indent=2))
        return
    table = Table(title=f"{benchmark.ROUNDS} rounds in turns, {threads} CPU threads, medians", title_justify="left")
    for i, column in enumerate(("file", "model", "precision", "File MB", "batch", "ms", "images/s", "relative speed")):
        table.add_column(column, justify="right" if i > 2 else "left")
    for result in results:
        names = (result.file, result.model, result.precision)
        table.add_row(
            *(escape(escape_control(text)) for text in names),
            f"{result.file_bytes / 1e6:.3f}",
            str(result.batch_size),
            f"{result.latency_ms:.3f}",
            f"{result.images_per_second:,.0f}",
            f"{result.relative_speed:.2f}",
        )
    print_whole(table)
