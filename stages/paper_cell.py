"""Distil one cell of a paper, all its seeds side by side: paper_cell.py FOLDER NAME."""

from pathlib import Path

from kdflow import plan, targets
from kdflow.errors import run_stage


def main(folder: str, name: str) -> None:
    """Read dataset and teacher, write data/<paper>/cells/<name>/."""
    targets.cell(plan.load(Path(folder)), name)


if __name__ == "__main__":
    run_stage(main)
