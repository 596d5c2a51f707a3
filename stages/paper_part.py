"""Make a table or figure of a paper from its records: paper_part.py FOLDER NAME."""

from pathlib import Path

from kdflow import plan, targets
from kdflow.errors import run_stage


def main(folder: str, name: str) -> None:
    """Read data/<paper>/cells/ and teachers/, write data/<paper>/<name>/."""
    targets.part(plan.load(Path(folder)), name)


if __name__ == "__main__":
    run_stage(main)
