"""Say where the students' teacher logits come from; a store of them is written here when one is asked for."""

from pathlib import Path

from kdflow import config, pipeline
from kdflow.errors import run_stage


def main() -> None:
    """Write data/logits/source.json."""
    pipeline.logits(config.load(), Path("data/logits"))


if __name__ == "__main__":
    run_stage(main)
