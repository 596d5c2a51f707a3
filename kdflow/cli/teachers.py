"""Commands for published teachers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdflow.cli.options import Root
from kdflow.cli.tables import print_whole
from kdflow.core.errors import UserError
from kdflow.core.files import expand_home
from kdflow.core.machine import default_loader_workers

if TYPE_CHECKING:
    from kdflow.models.convert_weights import Conversion
    from kdflow.teachers import Registry

app = typer.Typer()
teachers_app = typer.Typer(
    help="List, download, import and evaluate published teachers (recipes/teachers.yaml).", no_args_is_help=True
)
app.add_typer(teachers_app, name="teachers")
Name = Annotated[str, typer.Argument(metavar="NAME", help="A teacher's name, from `kdflow teachers list`.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print the original and the new name of every weight.")]


@teachers_app.command("list")
def list_teachers(root: Root = Path()) -> None:
    """List the known teachers and whether they are downloaded."""
    from rich.table import Table

    from kdflow import teachers

    registry = teachers.load(root)
    table = Table()
    for column in ("Teacher", "Dataset", "Architecture", "Top-1 %", "Max MB", "Licence", "Downloaded"):
        table.add_column(column, justify="right" if column in ("Top-1 %", "Max MB") else "left")
    for name, entry in registry.entries.items():
        top1, size = f"{entry.expected_top1:.2f}", f"{entry.download_spec.size / 1e6:.1f}"
        downloaded = "yes" if registry.weights_file(name).exists() else "no"
        table.add_row(name, entry.dataset, entry.architecture, top1, size, entry.licence, downloaded)
    print_whole(table)


@teachers_app.command("fetch")
def fetch_teacher(name: Name, verbose: Verbose = False, root: Root = Path()) -> None:
    """Download a teacher to .kdflow/teachers/. An interrupted download resumes."""
    from kdflow import teachers

    registry = teachers.load(root)
    _print_conversion(registry, name, teachers.fetch_and_check(registry, name), verbose)


@teachers_app.command("import")
def import_teacher(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A safetensors file, or one that torch.save wrote.")],
    name: Annotated[
        str | None, typer.Option(help="A name for the teacher. Not needed if the file has the sha256 of a known one.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="A key of recipes/datasets.yaml.")] = None,
    architecture: Annotated[str | None, typer.Option(help="A key of recipes/models.yaml.")] = None,
    top1: Annotated[float | None, typer.Option(min=0, max=100, help="Published test accuracy in percent.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights.", show_default="not stated")] = None,
    source: Annotated[
        str | None, typer.Option(help="Origin of the weights, such as an address.", show_default="the file's name")
    ] = None,
    verbose: Verbose = False,
    root: Root = Path(),
) -> None:
    """Copy a local file of weights to .kdflow/teachers/ and add it to the known teachers."""
    from kdflow import teachers

    registry = teachers.load(root)
    teacher: teachers.NewTeacher | str | None = None
    if name is not None and registry.lacks_hash(name):
        entry, teacher = registry.get(name), name
        options = {"dataset": dataset, "architecture": architecture, "top1": top1, "licence": licence, "source": source}
        for option, value in options.items():
            known = getattr(entry, option)
            if value not in (None, known):
                raise UserError(f"--{option}: is {value}, but recipes/teachers.yaml has {known} for {name}")
    elif name is not None:
        if dataset is None or architecture is None or top1 is None:
            raise UserError("kdflow teachers import: --name needs --dataset, --architecture and --top1")
        teacher = teachers.NewTeacher(name, dataset, architecture, top1, licence or "not stated", source or file.name)
    imported, conversion = teachers.import_weights(registry, expand_home(file), teacher)
    _print_conversion(teachers.load(root), imported, conversion, verbose)


@teachers_app.command("verify")
def verify_teacher(
    name: Name,
    data: Annotated[
        Path | None, typer.Option(help="The prepared dataset, an .h5 file.", show_default="data/dataset.h5")
    ] = None,
    root: Root = Path(),
) -> None:
    """Evaluate a teacher on its test set. Exit code 0: as accurate as published, 2: less accurate, 1: an error."""
    from kdflow import teachers
    from kdflow.pipeline import TEACHER_TOLERANCE

    registry = teachers.load(root)
    entry = registry.get(name)
    data = data or root / "data/dataset.h5"
    measured = teachers.evaluate_teacher(registry, name, data, workers=default_loader_workers())
    good = measured >= entry.expected_top1 - TEACHER_TOLERANCE
    typer.echo(
        f"{name}: expected {entry.expected_top1:.2f} % top-1, measured {measured:.2f} % on the test set of "
        f"{entry.dataset}: {'OK' if good else f'more than {TEACHER_TOLERANCE} points lower'}"
    )
    if not good:
        raise typer.Exit(2)


def _print_conversion(registry: Registry, name: str, conversion: Conversion, verbose: bool) -> None:
    file, architecture = registry.weights_file(name), registry.entries[name].architecture
    typer.echo(f"{file}: {file.stat().st_size:,} bytes, sha256 {conversion.sha256}")
    if registry.lacks_hash(name):
        typer.echo("The publisher gives no hash to check this file with: verify its accuracy.")
    typer.echo(f"fits {architecture}{' after these conversions:' if conversion.steps else ' without conversion'}")
    for step, count in conversion.steps:
        typer.echo(f"  {count:5}  {step}")
    if verbose:
        typer.echo("\n".join(f"  {original} -> {new}" for original, new in conversion.names))
    typer.echo(f"verify it: kdflow teachers verify {name}\nuse it:    {registry.usage_line(name)}")
