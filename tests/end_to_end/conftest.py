"""Experiments that are run once for all tests of a process."""

import pytest
from experiment import run_experiment
from project import Project, copy_of
from stage_project import StageProject, run_stages


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A project whose experiment has been run; tests that change it work on a copy.

    Its code differs in a comment from the code that is installed, so that records show which of the two ran.
    """
    project = Project(tmp_path_factory.mktemp("project"))
    project.edit_code()
    run_experiment(project)
    return project


@pytest.fixture
def project(finished, tmp_path) -> Project:
    """A copy of the finished project."""
    return copy_of(finished, tmp_path / "copy")


@pytest.fixture(scope="session")
def finished_stages(tmp_path_factory) -> StageProject:
    """A folder in which the stages of a small experiment have run without DVC."""
    return run_stages(tmp_path_factory.mktemp("stages"))
