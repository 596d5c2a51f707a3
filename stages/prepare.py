"""Fetch the dataset in hand and write it as one HDF5 file."""

from pathlib import Path

from kdflow import config, pipeline
from kdflow.core.errors import run_script


def main() -> None:
    """Read params.yaml and recipes/, write data/dataset.h5 and .json."""
    experiment = config.load()
    pipeline.prepare(experiment, Path("data/dataset.h5"), pipeline.work_dir() / "downloads", Path(config.PREPARED))


if __name__ == "__main__":
    run_script(main)
