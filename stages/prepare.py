"""Download or read the experiment's dataset and write it as one HDF5 file."""

from pathlib import Path

from kdflow import config
from kdflow.core.script import run_script
from kdflow.pipeline import work_dir
from kdflow.pipeline.prepare import prepare_dataset


def main() -> None:
    """Read params.yaml and recipes/, write data/dataset.h5 and data/dataset.json."""
    prepare_dataset(config.load(), Path("data/dataset.h5"), work_dir() / "downloads", Path(config.PREPARED))


if __name__ == "__main__":
    run_script(main)
