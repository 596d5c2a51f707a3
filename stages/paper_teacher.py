"""Train a teacher of a paper, or take its weights from a file: python -m stages.paper_teacher FOLDER NAME."""

from pathlib import Path

from kdflow.core.script import run_script
from kdflow.paper import load_paper
from kdflow.pipeline import paper


def main(folder: str, name: str) -> None:
    """Read the dataset, write <folder>/data/teachers/<name>/."""
    paper.teacher(load_paper(Path(folder)), name)


if __name__ == "__main__":
    run_script(main)
