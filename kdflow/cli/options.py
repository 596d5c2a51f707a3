"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[Path, typer.Option(help="The project's folder.")]
PaperFolder = Annotated[Path, typer.Option(help="The folder of a paper's tables.yaml.")]
PAPER = Path("paper")
RecordsFolder = Annotated[
    Path | None, typer.Option(help="Read results from this folder. Default: where the stages write them.")
]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="Number of CPU threads.")]
