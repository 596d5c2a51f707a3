"""Distil the student by one method from all seeds: python -m stages.distill METHOD."""

from pathlib import Path

from kdflow import config
from kdflow.core.script import run_script
from kdflow.pipeline import VIEWS_STORE, work_dir
from kdflow.pipeline.distill import distill_students


def main(method: str) -> None:
    """Read data/dataset.h5, data/teacher/ and data/logits/, write data/students/<method>/."""
    dataset, teacher, out = Path("data/dataset.h5"), Path("data/teacher"), Path("data/students") / method
    distill_students(config.load(), method, dataset, teacher, Path("data/logits") / VIEWS_STORE, out, work_dir())


if __name__ == "__main__":
    run_script(main)
