"""A copy of the project, committed to a new git repository, in which the real DVC runs."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from paths import ROOT
from ruamel.yaml import YAML


class Project:
    """A copy of the project.

    The environment has another copy installed, the one that is tested: what the stages run must be found without help.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = self.run("git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() and Path(name).name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self.run("git", "init", "-q")
        self.commit()

    @property
    def environment(self) -> dict[str, str]:
        who = {f"GIT_{role}_{key}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shell = "/bin/sh"  # DVC starts stages with it; other shells have more features than this one
        inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
        return {**inherited, **who, "PATH": path, "DVC_NO_ANALYTICS": "1", "SHELL": shell}

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

    def run(
        self, *command: str, cwd: Path | None = None, fails: bool = False, seconds: float = 300
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*command, cwd=cwd)
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert (process.returncode != 0) == fails, output
        return subprocess.CompletedProcess(command, process.returncode, output, "")

    def commit(self) -> None:
        """Commit all files that git does not ignore."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "a state of the project")

    def dvc(self, *arguments: str, fails: bool = False) -> tuple[list[str], str]:
        """Run dvc; return the stages that it ran and its output."""
        output = self.run("dvc", *arguments, fails=fails).stdout
        return re.findall("Running stage '(.*)'", output), output

    def status(self) -> set[str]:
        """Return the stages that `dvc status` reports as changed; in this process, to start DVC once only."""
        from dvc.repo import Repo

        with contextlib.chdir(self.folder), Repo() as repo:
            return set(repo.status())

    def code_sha256(self) -> str:
        """Return the hash that records have of the code in this folder."""
        script = "from kdflow.training import record; print(record.PACKAGE, record.code_sha256())"
        package, sha256 = self.run(sys.executable, "-c", script).stdout.split()
        assert Path(package) == self.folder / "kdflow"
        return sha256

    def edit_code(self, file: str = "kdflow/training/schedule.py") -> str:
        """Append a comment to a file of code; return the new hash of the code."""
        with (self.folder / file).open("a") as source:
            source.write("# edited\n")
        return self.code_sha256()

    def settings(self, **values: object) -> None:
        """Set keys of params.yaml."""
        yaml = YAML()
        file = self.folder / "params.yaml"
        content = yaml.load(file)
        content.update(values)
        yaml.dump(content, file)

    def records(self, method: str) -> dict[str, dict]:
        """Return the records of a method by file name, without `timing`, which differs between runs."""
        records = {}
        for file in sorted((self.folder / "data/records" / method).glob("*.json")):
            records[file.name] = json.loads(file.read_text())
            assert records[file.name].pop("timing")["seconds"] > 0
            del records[file.name]["content_sha256"]
        return records


def project_in(folder: Path) -> Project:
    """Return the project that a folder holds."""
    project = object.__new__(Project)
    project.folder = folder
    return project


def copy_of(project: Project, folder: Path) -> Project:
    """Copy a project to a new folder, with its outputs and DVC's cache."""
    shutil.copytree(project.folder, folder)
    return project_in(folder)
