"""Make a table or figure of a paper from its records: python -m stages.paper_item FOLDER NAME."""

from pathlib import Path

from kdflow.core.script import run_script
from kdflow.paper import load_paper
from kdflow.pipeline import paper


def main(folder: str, name: str) -> None:
    """Read <folder>/data/cells/ and teachers/, write <folder>/data/<name>/."""
    paper.item(load_paper(Path(folder)), name)


if __name__ == "__main__":
    run_script(main)
