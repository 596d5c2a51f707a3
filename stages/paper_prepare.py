"""Download or read a dataset of a paper: python -m stages.paper_prepare FOLDER DATASET."""

from pathlib import Path

from kdflow.core.script import run_script
from kdflow.paper import load_paper
from kdflow.pipeline import paper


def main(folder: str, dataset: str) -> None:
    """Write <folder>/data/<dataset>.h5 and .json."""
    paper.prepare(load_paper(Path(folder)), dataset)


if __name__ == "__main__":
    run_script(main)
