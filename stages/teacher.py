"""Train the teacher or take its weights from a file, and measure it."""

from pathlib import Path

from kdflow import config, pipeline
from kdflow.core.errors import run_script


def main() -> None:
    """Read data/dataset.h5, write data/teacher/."""
    experiment = config.load()
    dataset = Path("data/dataset.h5")
    pipeline.teacher(experiment, dataset, Path("data/teacher"), pipeline.work_dir())


if __name__ == "__main__":
    run_script(main)
