"""Distil one cell of a paper from all its seeds: python -m stages.paper_cell FOLDER NAME."""

from pathlib import Path

from kdflow.core.script import run_script
from kdflow.paper import load_paper
from kdflow.pipeline import paper


def main(folder: str, name: str) -> None:
    """Read dataset and teacher, write <folder>/data/cells/<name>/."""
    paper.cell(load_paper(Path(folder)), name)


if __name__ == "__main__":
    run_script(main)
