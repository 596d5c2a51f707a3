"""Fetch the dataset in hand and write it as one HDF5 file."""

from pathlib import Path

from kdflow import config, pipeline
from kdflow.errors import run_stage


def main() -> None:
    """Read params.yaml and recipes/, write data/dataset.h5 and .json."""
    experiment = config.load()
    pipeline.prepare(experiment, Path("data/dataset.h5"), pipeline.scratch() / "downloads", Path(config.PREPARED))


if __name__ == "__main__":
    run_stage(main)
