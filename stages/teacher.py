"""Train the teacher, or take its weights from a file, and evaluate it."""

from pathlib import Path

from kdflow import config
from kdflow.core.script import run_script
from kdflow.pipeline import project_folder, work_dir
from kdflow.pipeline.teacher import make_teacher


def main() -> None:
    """Read data/dataset.h5, write data/teacher/."""
    make_teacher(config.load(), Path("data/dataset.h5"), Path("data/teacher"), work_dir(), project_folder())


if __name__ == "__main__":
    run_script(main)
