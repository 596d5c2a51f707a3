"""Commands about teachers that others trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdflow.cli.options import Root
from kdflow.cli.tables import print_whole
from kdflow.core.errors import UserError

if TYPE_CHECKING:
    from kdflow.models.convert_weights import Conversion
    from kdflow.teachers import Registry

app = typer.Typer()
teachers_app = typer.Typer(help="Teachers that others trained: recipes/teachers.yaml.", no_args_is_help=True)
app.add_typer(teachers_app, name="teachers")
Name = Annotated[str, typer.Argument(metavar="NAME", help="A teacher's name, as `kdflow teachers list` has it.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print what became of every weight's name.")]


@teachers_app.command("list")
def list_teachers(root: Root = Path()) -> None:
    """Print the teachers that are known, and which of them are here."""
    from rich.table import Table

    from kdflow import teachers

    registry = teachers.load(root)
    shown = Table()
    for column in ("Teacher", "Dataset", "Architecture", "Top-1 %", "MB at most", "Licence", "Here"):
        shown.add_column(column, justify="right" if column in ("Top-1 %", "MB at most") else "left")
    for name, entry in registry.entries.items():
        size = f"{entry.wanted.size / 1e6:.1f}"
        here = "yes" if registry.file(name).exists() else "no"
        shown.add_row(name, entry.dataset, entry.architecture, f"{entry.expected:.2f}", size, entry.licence, here)
    print_whole(shown)


@teachers_app.command("fetch")
def fetch_teacher(name: Name, verbose: Verbose = False, root: Root = Path()) -> None:
    """Download a teacher to .kdflow/teachers/, going on where an earlier attempt ended."""
    from kdflow import teachers

    registry = teachers.load(root)
    _tell(registry, name, teachers.fetch_and_check(registry, name), verbose)


@teachers_app.command("import")
def import_teacher(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Weights: safetensors, or what torch.save wrote.")],
    name: Annotated[str | None, typer.Option(help="A name for it. Not needed where its hash is known.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A key of recipes/datasets.yaml.")] = None,
    architecture: Annotated[str | None, typer.Option(help="A key of recipes/models.yaml.")] = None,
    top1: Annotated[
        float | None, typer.Option(min=0, max=100, help="Percent on the test set, as its publisher says.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="What may be done with it; else: not stated.")] = None,
    source: Annotated[str | None, typer.Option(help="Where it is from; else the file's name.")] = None,
    verbose: Verbose = False,
    root: Root = Path(),
) -> None:
    """Take weights that you have, in whatever common form, and remember what they are in .kdflow/teachers/."""
    from kdflow import teachers

    registry = teachers.load(root)
    about: teachers.NewTeacher | str | None = None
    if name is not None and registry.has_no_hash(name):
        entry, about = registry.named(name), name
        told = {"dataset": dataset, "architecture": architecture, "top1": top1, "licence": licence, "source": source}
        for option, given in told.items():
            known = getattr(entry, option)
            if given not in (None, known):
                raise UserError(f"--{option}: {given}, but {name} is a teacher of recipes/teachers.yaml, with {known}")
    elif name is not None:
        if dataset is None or architecture is None or top1 is None:
            raise UserError("kdflow teachers import: --name goes with --dataset, --architecture and --top1")
        about = teachers.NewTeacher(name, dataset, architecture, top1, licence or "not stated", source or file.name)
    found, mapped = teachers.import_weights(registry, file.expanduser(), about)
    _tell(teachers.load(root), found, mapped, verbose)


@teachers_app.command("verify")
def verify_teacher(
    name: Name,
    data: Annotated[Path | None, typer.Option(help="The prepared dataset; else that of the experiment.")] = None,
    root: Root = Path(),
) -> None:
    """Measure a teacher on its test set; exit code 0: as good as expected, 2: not, 1: bad input."""
    from kdflow import teachers
    from kdflow.pipeline import TEACHER_TOLERANCE

    registry = teachers.load(root)
    entry = registry.named(name)
    data = data or root / "data/dataset.h5"
    measured = teachers.evaluate_teacher(registry, name, data, workers=min(8, os.cpu_count() or 1))
    good = measured >= entry.expected - TEACHER_TOLERANCE
    typer.echo(
        f"{name}: expected {entry.expected:.2f}, measured {measured:.2f} % top-1 on {entry.dataset}'s test set: "
        f"{'OK' if good else f'more than {TEACHER_TOLERANCE} lower'}"
    )
    if not good:
        raise typer.Exit(2)


def _tell(registry: Registry, name: str, mapped: Conversion, verbose: bool) -> None:
    file, architecture = registry.file(name), registry.entries[name].architecture
    typer.echo(f"{file}: {file.stat().st_size:,} bytes, sha256 {mapped.sha256}")
    if registry.has_no_hash(name):
        typer.echo("nobody states its hash, so nothing says yet that it is the file that was meant: measure it")
    typer.echo(f"fits {architecture}{':' if mapped.steps else ', as it is'}")
    for step, count in mapped.steps:
        typer.echo(f"  {count:5}  {step}")
    if verbose:
        typer.echo("\n".join(f"  {theirs} -> {ours}" for theirs, ours in mapped.names))
    typer.echo(f"measure it: kdflow teachers verify {name}\nuse it:     {registry.use(name)}")
