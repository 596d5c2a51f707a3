"""Compute the teacher logits that are stored ahead of training, if params.yaml requests it."""

from pathlib import Path

from kdflow import config
from kdflow.core.script import run_script
from kdflow.pipeline import work_dir
from kdflow.pipeline.logits import write_logits


def main() -> None:
    """Read data/dataset.h5 and data/teacher/, write data/logits/."""
    write_logits(config.load(), Path("data/dataset.h5"), Path("data/teacher"), Path("data/logits"), work_dir())


if __name__ == "__main__":
    run_script(main)
