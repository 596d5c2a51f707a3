"""Fetch a dataset of a paper: paper_prepare.py FOLDER DATASET."""

from pathlib import Path

from kdflow import plan, targets
from kdflow.errors import run_stage


def main(folder: str, dataset: str) -> None:
    """Write data/<paper>/<dataset>.h5 and .json."""
    targets.prepare(plan.load(Path(folder)), dataset)


if __name__ == "__main__":
    run_stage(main)
