"""The command that makes a project."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    paper: Annotated[bool, typer.Option("--paper", help="Add the tables and figures of the paper, in paper/.")] = False,
) -> None:
    """Make a project: params.yaml, dvc.yaml, stages/ and recipes/, in which `dvc repro` runs the experiment."""
    from kdflow.pipeline import package

    package.init(folder, paper=paper)
    change = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    typer.echo(f"{folder}: a project with the demo's settings in params.yaml\nnext: {change}dvc repro && kdflow table")
