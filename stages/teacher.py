"""Train the teacher or take its weights from a file, and measure it."""

from pathlib import Path

from kdflow import config, pipeline
from kdflow.errors import run_stage


def main() -> None:
    """Read data/dataset.h5, write data/teacher/."""
    experiment = config.load()
    dataset = Path("data/dataset.h5")
    pipeline.teacher(experiment, dataset, Path("data/teacher"), pipeline.scratch())


if __name__ == "__main__":
    run_stage(main)
