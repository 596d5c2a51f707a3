"""The copy of the project whose code runs.

A project may exist several times on a machine: clones, git worktrees, the copies in which DVC runs experiments. At most
one of them is installed in the environment, yet a stage must run the code of the copy that it is in, in all of its
processes. `python -m stages.NAME` in the project's folder finds that code first; child processes need `same_source`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from kdflow.core.errors import UserError

PROJECT = Path(__file__).parents[2]
"""The folder that this process imports kdflow from."""


def check_source(script: Path) -> None:
    """Check that a script in stages/ runs with the kdflow that is beside it.

    Raises:
        UserError: kdflow was imported from another copy of the project.
    """
    project = script.resolve().parents[1]
    if (project / "kdflow").is_dir() and project != PROJECT.resolve():
        raise UserError(
            f"{script}: kdflow is imported from another folder, {PROJECT}; "
            f"run `python -m stages.{script.stem}` in {project}"
        )


@contextmanager
def same_source() -> Iterator[None]:
    """Make Python processes that are started in this block import kdflow from where this process does.

    Without it, a new interpreter searches the current folder and then the environment, which may have another copy.
    """
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT.absolute()), before["PYTHONPATH"]]))
    os.environ["PYTHONSAFEPATH"] = "1"  # the current folder is not searched first
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def git_commit() -> tuple[str | None, bool | None]:
    """Return the commit of the running code, and whether the code was modified since; None if git does not track it."""
    # The repository may be another project's: a ZIP file was unpacked in it, or kdflow is installed in its environment.
    tracked = _git("ls-files", "--error-unmatch", "--", "__init__.py").returncode == 0
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".")
    if not tracked or commit.returncode != 0:
        return None, None
    return commit.stdout.strip(), bool(changes.stdout)


@cache
def warn_without_commit() -> None:
    """Print once per process why git gives no commit for records, such as a repository that another user owns."""
    commit = _git("rev-parse", "HEAD")
    if commit.returncode != 0 and "not a git repository" not in commit.stderr:
        print(f"warning: records have no commit: git: {' '.join(commit.stderr.split())}")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in the folder of the code."""
    command, environment = ["git", "-C", str(PROJECT / "kdflow"), *arguments], {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError:
        reason = "not installed" if (PROJECT / ".git").exists() else "not a git repository"
        return subprocess.CompletedProcess(command, 1, "", reason)
