"""Say where the students' teacher logits come from; where all views are asked ahead, ask the teacher."""

from pathlib import Path

from kdflow import config, pipeline
from kdflow.core.errors import run_script


def main() -> None:
    """Read the dataset and data/teacher/, write data/logits/."""
    experiment = config.load()
    dataset = Path("data/dataset.h5")
    pipeline.logits(experiment, dataset, Path("data/teacher"), Path("data/logits"), pipeline.work_dir())


if __name__ == "__main__":
    run_script(main)
