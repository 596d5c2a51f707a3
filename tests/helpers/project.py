"""A copy of the project with a git repository of its own, in which the real DVC runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from paths import ROOT
from ruamel.yaml import YAML

GRAPHS = ("paper/dvc.yaml", "paper/miniature/dvc.yaml")  # left out of copies: they cost every command of DVC seconds


class Project:
    """A copy of the project, committed to a git repository of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = self.run("git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() and Path(name).name != "dvc.lock" and name not in GRAPHS:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self.run("git", "init", "-q")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "copy")

    @property
    def environment(self) -> dict[str, str]:
        who = {f"GIT_{role}_{key}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shell = "/bin/sh"  # DVC runs stages by it: the plainest is the hardest
        return {
            **os.environ,
            **who,
            "PATH": path,
            "PYTHONPATH": str(self.folder),
            "DVC_NO_ANALYTICS": "1",
            "SHELL": shell,
        }

    def start(self, *command: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=cwd or self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *command: str, cwd: Path | None = None, fails: bool = False) -> subprocess.CompletedProcess[str]:
        process = self.start(*command, cwd=cwd)
        output, _ = process.communicate(timeout=300)
        assert (process.returncode != 0) == fails, output
        return subprocess.CompletedProcess(command, process.returncode, output, "")

    def dvc(self, *arguments: str, fails: bool = False) -> tuple[list[str], str]:
        """Run dvc; returns the stages that it ran and all that was printed."""
        output = self.run("dvc", *arguments, fails=fails).stdout
        return re.findall("Running stage '(.*)'", output), output

    def settings(self, **values: object) -> None:
        yaml = YAML()
        file = self.folder / "params.yaml"
        content = yaml.load(file)
        content.update(values)
        yaml.dump(content, file)

    def records(self, method: str) -> dict[str, dict]:
        """Every record of a method, by file name, without what may differ between two runs."""
        found = {}
        for file in sorted((self.folder / "data/records" / method).glob("*.json")):
            found[file.name] = json.loads(file.read_text())
            assert found[file.name].pop("timing")["seconds"] > 0
        return found


def copy_of(project: Project, folder: Path) -> Project:
    copy = object.__new__(Project)
    copy.folder = folder
    shutil.copytree(project.folder, folder)
    return copy
