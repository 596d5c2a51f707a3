"""Write package.json of a project of `kdflow init`: python -m stages.package FILE.

Only the dvc.yaml of such a project, and that of its paper, have this stage.
"""

from pathlib import Path

from kdflow.core.script import run_script
from kdflow.pipeline.package import write_package


def main(file: str) -> None:
    """Write the hashes of kdflow's code and the merged recipes, on which the other stages depend."""
    write_package(Path(), Path(file))


if __name__ == "__main__":
    run_script(main)
