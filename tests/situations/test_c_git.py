"""Trees without git, and repositories that git does not read."""

import shutil
import subprocess

import pytest
from project import Project

from kdflow.config import Compute
from kdflow.core import source
from kdflow.pipeline import train
from kdflow.training import record


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A folder of code in a git repository, not yet committed."""
    package = tmp_path / "kdflow"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@localhost")
    monkeypatch.setattr(source, "PROJECT", tmp_path)
    source.warn_without_commit.cache_clear()
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "another project")
    yield package
    source.warn_without_commit.cache_clear()


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, *arguments], check=True)


def warnings(capsys):
    source.warn_without_commit()
    source.warn_without_commit()
    return capsys.readouterr().out.splitlines()


def test_the_commit_of_the_code_is_recorded(code, capsys):
    git(code, "add", ".")
    git(code, "commit", "-qm", "code")
    version = record.code_version()
    assert (len(version.commit), version.modified) == (40, False)
    (code / "new.py").write_text("")
    assert record.code_version().modified is True
    assert warnings(capsys) == []


def test_the_commit_of_another_project_is_not_recorded(code, capsys):
    version = record.code_version()
    assert (version.commit, version.modified) == (None, None)
    assert warnings(capsys) == []


def test_another_user_s_repository_gives_one_warning_with_the_remedy(code, capsys, monkeypatch):
    git(code, "add", ".")
    git(code, "commit", "-qm", "code")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's, for its tests
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    assert record.code_version().commit is None
    monkeypatch.setattr(train.parallel_runs, "run_parallel", lambda *_: None)
    options = {"device": "cpu", "threads": 1, "max_parallel_runs": 1, "processes_per_run": 1, "replay_gb": 1.0}
    for _ in range(2):
        train.train("teacher", [], Compute(**options, loader_workers=0))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: records have no commit: git: fatal: detected dubious ownership in repository")
    assert "git config --global --add safe.directory " in line


def test_git_that_is_not_installed(code, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert record.code_version().commit is None
    assert warnings(capsys) == ["warning: records have no commit: git: not installed"]


def test_a_tree_without_a_repository_is_no_mistake(code, capsys):
    shutil.rmtree(code.parent / ".git")
    assert record.code_version().commit is None
    assert warnings(capsys) == []


@pytest.mark.slow
def test_the_demo_of_a_tree_without_git(tmp_path):
    project = Project(tmp_path / "tree")
    shutil.rmtree(project.folder / ".git")
    environment = project.folder / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/python").touch()
    (environment / "demo.ok").touch()  # what it installs is in the environment of the tests

    def make(target):
        return project.run("make", "--no-print-directory", "-o", ".venv/demo.ok", target).stdout

    output = make("scm")
    assert output.startswith("no git repository: DVC runs without one, except for dvc exp, which needs: git init")
    assert make("scm") == output
    assert project.dvc("repro", "prepare")[0] == ["prepare"]
    _, output = project.dvc("exp", "run", "-S", "epochs=1", fails=True)
    assert "Only supported for Git repositories" in output
    project.run("git", "init", "-q")
    project.commit()
    assert make("scm") == ""
    project.dvc("exp", "run", "--temp", "-S", "epochs=1", "prepare")
