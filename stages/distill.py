"""Distil the student by one method, all seeds side by side: distill.py METHOD."""

from pathlib import Path

from kdflow import config, pipeline
from kdflow.core.errors import run_script


def main(method: str) -> None:
    """Read data/dataset.h5, data/teacher/ and data/logits/, write data/students/<method>/."""
    experiment = config.load()
    dataset, out = Path("data/dataset.h5"), Path(f"data/students/{method}")
    pipeline.distill(experiment, method, dataset, Path("data/teacher"), Path("data/logits"), out, pipeline.work_dir())


if __name__ == "__main__":
    run_script(main)
