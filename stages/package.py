"""Write data/package.json of a project of `kdflow init`. Only the dvc.yaml of such a project has this stage."""

from pathlib import Path

from kdflow.core.script import run_script
from kdflow.pipeline.package import write_package


def main() -> None:
    """Write the hashes of kdflow's code and the merged recipes, on which the other stages depend."""
    write_package(Path(), Path("data/package.json"))


if __name__ == "__main__":
    run_script(main)
