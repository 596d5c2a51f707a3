"""The stages in a folder with its settings, without DVC."""

import contextlib
import functools
import io
import os
import resource
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from paths import ROOT
from ruamel.yaml import YAML


class StageProject:
    """A folder with its settings, in which the stages of this repository run without DVC."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stage(self, *command: str, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run a stage as DVC does; in this process, which has imported torch, if it starts no other process."""
        script, *arguments = command
        file = str(ROOT / f"stages/{script}.py")
        if script == "distill" or largest_file is not None:
            return self._process([sys.executable, file, *arguments], largest_file)
        out, err, code = io.StringIO(), io.StringIO(), 0
        before, sys.argv = sys.argv, [file, *arguments]
        try:
            with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_path(file, run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            sys.argv = before
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    def _process(self, command: list[str], largest_file: int | None) -> subprocess.CompletedProcess[str]:
        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            preexec_fn=limit,
        )

    def edit(self, file: str, path: str, value: object) -> None:
        """Set the entry at a dotted path of a YAML file."""
        yaml = YAML()
        content = yaml.load(self.folder / file)
        *above, last = path.split(".")
        functools.reduce(lambda part, key: part[key], above, content)[last] = value
        yaml.dump(content, self.folder / file)

    def contents(self) -> dict[Path, bytes]:
        """Return the content of every file below data/."""
        return {file: file.read_bytes() for file in (self.folder / "data").rglob("*") if file.is_file()}


def small_project(folder: Path, teacher_epochs: int = 1) -> StageProject:
    """Write the settings of a small experiment to a new folder: a teacher and one student of one epoch."""
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    project = StageProject(folder)
    project.edit("params.yaml", "teacher_epochs", teacher_epochs)
    project.edit("params.yaml", "epochs", 1)
    project.edit("params.yaml", "seeds", [0])
    project.edit("params.yaml", "teacher", "resnet8")
    return project


def run_stages(folder: Path) -> StageProject:
    """Run the stages of a small experiment in a new folder: dataset, teacher and one student, one epoch each."""
    project = small_project(folder)
    for command in (("prepare",), ("teacher",), ("logits",), ("distill", "ce"), ("evaluate", "ce")):
        done = project.stage(*command)
        assert done.returncode == 0, done.stderr
    return project


def refused(project: StageProject, *command: str, says: str, largest_file: int | None = None) -> None:
    """Check that a stage prints one line that contains `says`, exits with code 1 and leaves its outputs unchanged."""
    before = project.contents()
    done = project.stage(*command, largest_file=largest_file)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line and "%|" not in line]  # without a download's progress
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert says in lines[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert project.contents() == before
