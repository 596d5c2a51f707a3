"""Two cheap cells of evidence/ are trained again from real data and compared with the committed baseline."""

import os
import shutil
from pathlib import Path

import pytest
from project import Project

CELLS = ("cifar100-resnet8-ce-e80-none", "cifar100-resnet56-resnet8-kd-e80-none")
DATA, TEACHER = os.environ.get("KDFLOW_CIFAR100"), os.environ.get("KDFLOW_TEACHER")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not (DATA and TEACHER), reason="KDFLOW_CIFAR100 and KDFLOW_TEACHER are not set")
def test_two_cells_have_not_drifted(tmp_path):
    project = Project(tmp_path / "project")
    (project.folder / ".kdflow/teachers").mkdir(parents=True)
    (project.folder / ".kdflow/cifar100").symlink_to(Path(DATA).absolute())
    shutil.copyfile(TEACHER, project.folder / ".kdflow/teachers/cifar100_resnet56.pt")
    for cell in CELLS:
        project.run("dvc", "--cd", "evidence", "repro", f"cell@{cell}", seconds=3600)
    assert "0 of" in project.run("kdflow", "drift", "--paper", "evidence", *CELLS).stdout
