"""Measure the students of one method and write their records: evaluate.py METHOD."""

from pathlib import Path

from kdflow import config, pipeline
from kdflow.core.errors import run_script


def main(method: str) -> None:
    """Read the dataset, data/teacher/ and data/students/<method>/, write data/records/<method>/ and data/metrics/."""
    experiment = config.load()
    dataset, students = Path("data/dataset.h5"), Path(f"data/students/{method}")
    out, metrics = Path(f"data/records/{method}"), Path(f"data/metrics/{method}.json")
    pipeline.evaluate(experiment, method, dataset, Path("data/teacher"), students, out, metrics)


if __name__ == "__main__":
    run_script(main)
