"""The paper's stages are in separate DVC projects: DVC's commands in the root see the experiment only."""

from pathlib import Path

import pytest
from dvc.repo import Repo
from papers import make_paper
from paths import ROOT

from kdflow.core.errors import UserError
from kdflow.paper.dvc_yaml import check_generated, write_generated
from kdflow.pipeline import work_dir


def test_the_root_has_the_stages_of_the_experiment_only():
    with Repo(str(ROOT)) as repo:
        assert {stage.path_in_repo for stage in repo.index.stages} == {"dvc.yaml"}


def test_a_paper_has_its_stages_only_and_its_outputs_in_its_folder():
    folder = ROOT / "paper/micro"
    with Repo(str(folder)) as repo:
        assert {stage.path_in_repo for stage in repo.index.stages} == {"dvc.yaml"}
        outputs = [Path(out.fs_path) for out in repo.index.outs]
        assert outputs and all(out.is_relative_to(folder / "data") for out in outputs)
        inputs = {Path(dep.fs_path) for stage in repo.index.stages for dep in stage.deps} - set(outputs)
        missing = [dep for dep in inputs if not dep.exists() and not dep.is_relative_to(folder / "data")]
        assert missing == [], "dependencies outside of the project are found"


def test_plan_makes_a_folder_a_dvc_project_and_keeps_its_configuration(tmp_path):
    paper = make_paper(tmp_path)
    write_generated(paper)
    config = tmp_path / "paper/.dvc/config"
    config.write_text(config.read_text() + "['remote \"shared\"']\n    url = s3://somewhere\n")
    before = config.read_text()
    write_generated(paper)
    check_generated(paper)
    assert config.read_text() == before
    config.unlink()
    with pytest.raises(UserError, match=r"paper/\.dvc/config: no such file; run `kdflow plan` and commit"):
        check_generated(paper)


@pytest.mark.parametrize("project", ["", "paper", "paper/micro"])
def test_unfinished_work_is_in_the_root_whatever_the_dvc_project(tmp_path, monkeypatch, project):
    make_paper(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / project))
    assert work_dir() == tmp_path / ".kdflow"
    monkeypatch.delenv("DVC_ROOT")
    assert work_dir() == Path(".kdflow")
