"""Train a teacher of a paper, or take its weights from a file: paper_teacher.py FOLDER NAME."""

from pathlib import Path

from kdflow import plan, targets
from kdflow.errors import run_stage


def main(folder: str, name: str) -> None:
    """Read the dataset, write data/<paper>/teachers/<name>/."""
    targets.teacher(plan.load(Path(folder)), name)


if __name__ == "__main__":
    run_stage(main)
