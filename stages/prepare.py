"""Download or read the experiment's dataset and write it as one HDF5 file."""

from pathlib import Path

from kdflow import config
from kdflow.core.script import run_script
from kdflow.pipeline import project_folder, work_dir
from kdflow.pipeline.prepare import prepare_dataset


def main() -> None:
    """Read params.yaml and recipes/, write data/dataset.h5 and data/dataset.json."""
    dataset, downloads = Path("data/dataset.h5"), work_dir() / "downloads"
    prepare_dataset(config.load(), dataset, downloads, Path(config.PREPARED), project_folder())


if __name__ == "__main__":
    run_script(main)
