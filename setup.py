"""Adds the files of a project, which are at the top of the repository, to the wheel. pyproject.toml has all the rest.

`kdflow init` copies them; the recipes in the wheel are the built-in ones of an installed kdflow.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PATTERNS = (
    *("params.yaml", "dvc.yaml", "recipes/*.yaml", "stages/*.py"),
    *("paper/params.yaml", "paper/tables.yaml", "tests/golden/*.json"),
)


class BuildWithProject(build_py):
    """Build with copies of the project's files in kdflow/project/. A clone that is installed as editable has none."""

    def run(self) -> None:
        """Copy the files after the package is built."""
        super().run()
        for file in [] if self.editable_mode else self._project_files():
            target = Path(self.build_lib, "kdflow/project", file)
            self.mkpath(str(target.parent))
            self.copy_file(file, str(target))

    def get_source_files(self) -> list[str]:
        """Return the files that the source distribution needs."""
        return [*super().get_source_files(), *self._project_files()]

    def _project_files(self) -> list[str]:
        return sorted(str(file) for pattern in PATTERNS for file in Path().glob(pattern))


setup(cmdclass={"build_py": BuildWithProject})
