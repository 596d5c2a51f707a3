"""Make the page of a paper from its records: python -m stages.paper_report FOLDER."""

from pathlib import Path

from kdflow.core.script import run_script
from kdflow.paper import load_paper
from kdflow.report import paper_page


def main(folder: str) -> None:
    """Read <folder>/data/, write <folder>/data/report.html."""
    paper = load_paper(Path(folder))
    paper_page.write(paper, paper.data / "report.html")


if __name__ == "__main__":
    run_script(main)
