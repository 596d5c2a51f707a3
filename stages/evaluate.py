"""Evaluate the students of one method and write their records: python -m stages.evaluate METHOD."""

from pathlib import Path

from kdflow import config
from kdflow.core.script import run_script
from kdflow.pipeline.evaluate import evaluate_students


def main(method: str) -> None:
    """Read the dataset, data/teacher/ and data/students/<method>/, write data/records/<method>/ and data/metrics/."""
    dataset, teacher, students = Path("data/dataset.h5"), Path("data/teacher"), Path("data/students") / method
    out, metrics = Path("data/records") / method, Path(f"data/metrics/{method}.json")
    evaluate_students(config.load(), method, dataset, teacher, students, out, metrics)


if __name__ == "__main__":
    run_script(main)
