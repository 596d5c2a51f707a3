"""Make the page of a paper from its records: paper_report.py FOLDER."""

from pathlib import Path

from kdflow import plan
from kdflow.errors import run_stage
from kdflow.report import page


def main(folder: str) -> None:
    """Read data/<paper>/, write data/<paper>/report.html."""
    paper = plan.load(Path(folder))
    page.write(paper, paper.data / "report.html")


if __name__ == "__main__":
    run_stage(main)
