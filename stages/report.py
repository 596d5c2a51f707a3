"""Make the table and the figure from the records."""

from pathlib import Path

from kdflow import config, report
from kdflow.core.script import run_script


def main() -> None:
    """Read data/teacher/record.json and data/records/, write data/report/."""
    report.write(config.load(), Path("data/teacher/record.json"), Path("data/records"), Path("data/report"))


if __name__ == "__main__":
    run_script(main)
