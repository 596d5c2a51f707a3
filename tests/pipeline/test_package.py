"""kdflow init: the files of a project, and its stages' dependencies on an installed kdflow."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from ruamel.yaml import YAML

from kdflow import config
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.paper import load_paper
from kdflow.paper.dvc_yaml import check_generated
from kdflow.paper.project_stages import PACKAGE_JSON, project_stages
from kdflow.pipeline import package
from kdflow.training.record import code_sha256

STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


@pytest.fixture
def content(tmp_path):
    package.write_package(tmp_path, tmp_path / "package.json")
    return json.loads((tmp_path / "package.json").read_text())


def values(stage):
    """Return the keys of data/package.json that a stage depends on."""
    return [
        key
        for entry in stage.get("do", stage).get("params", [])
        if isinstance(entry, dict)
        for key in entry.get(PACKAGE_JSON, [])
    ]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_values_that_exist(name, content):
    found = values(project_stages(STAGES)[name])
    assert found
    for key in found:
        if "$" not in key:
            kind, name = key.split(".")
            assert name in content[kind], key


def test_a_stage_keeps_the_dependencies_that_a_project_has(tmp_path):
    package.init(tmp_path)
    outs = {out for stage in STAGES.values() for out in stage.get("do", stage)["outs"]}
    for stage in project_stages(STAGES).values():
        for dep in stage.get("do", stage)["deps"]:
            assert (tmp_path / dep).is_file() or dep in outs or dep == "data/records", dep


def test_the_paper_of_a_project_depends_on_the_installed_code(tmp_path):
    package.init(tmp_path, paper=True)
    paper = load_paper(Path("paper"), tmp_path)
    check_generated(paper)
    package.write_package(tmp_path, tmp_path / "package.json")
    content = json.loads((tmp_path / "package.json").read_text())
    stages = YAML(typ="safe").load(tmp_path / "paper/dvc.yaml")["stages"]
    assert set(stages) == {"package", "prepare", "teacher", "cell", "report", *paper.items}
    assert stages["package"]["cmd"] == "cd .. && exec python -m stages.package paper/data/package.json"
    for stage in stages.values():
        parts = stage.get("do", stage)
        assert [dep for dep in parts.get("deps", []) if dep.startswith("..")] in ([], ["../stages/package.py"])
        script = parts["cmd"].split("stages.")[1].split()[0]
        assert (tmp_path / "stages" / f"{script}.py").is_file()
        for key in values(stage):
            if "$" not in key:
                kind, name, *_ = key.split(".")
                assert name in content[kind], key
    cell = values(stages["cell"])
    assert {"golden.${item.method}", "recipes.methods.${item.method}", "recipes.models.${item.student}"} <= set(cell)
    golden = {file.stem: files.sha256(file) for file in (ROOT / "tests/golden").glob("*.json")}
    assert content["golden"] == {**golden, "my_kd": code_sha256("methods", "models", "training")}


@pytest.mark.parametrize("folder", ["", "paper"])
def test_the_first_stage_of_a_project_and_of_its_paper_runs(tmp_path, folder):
    package.init(tmp_path, paper=True)
    stage = YAML(typ="safe").load(tmp_path / folder / "dvc.yaml")["stages"]["package"]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    subprocess.run(stage["cmd"], shell=True, check=True, cwd=tmp_path / folder, env=env)
    content = json.loads((tmp_path / folder / stage["outs"][0]).read_text())
    assert content["code"] == package.code_hashes()


def test_another_version_of_a_module_changes_its_hash_and_those_of_its_folders(tmp_path, monkeypatch):
    for name in ("a/b/c.py", "a/d.py", "e.py", "project/stages/f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(config.base, "PACKAGE", tmp_path)
    monkeypatch.setattr(package, "PACKAGE", tmp_path)
    before = package.code_hashes()
    assert set(before) == {"a", "a/b", "a/b/c", "a/d", "e"}, "the stages that init copies are no code of kdflow"
    (tmp_path / "a/b/c.py").write_text("x = 2\n")
    assert {key for key, value in package.code_hashes().items() if value != before[key]} == {"a", "a/b", "a/b/c"}


def test_a_project_s_recipes_are_in_the_file(tmp_path):
    package.init(tmp_path)
    package.write_package(tmp_path, tmp_path / "data/package.json")
    recipes = json.loads((tmp_path / "data/package.json").read_text())["recipes"]
    assert recipes["methods"]["my_kd"] == {"ce": 0.1, "kl": 0.9, "tau": 2.0}
    assert set(recipes) == {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    assert "my_kd" in config.load(tmp_path).methods


def test_init_writes_the_settings_of_the_demo(tmp_path):
    package.init(tmp_path / "new/project")
    folder = tmp_path / "new/project"
    assert (folder / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    assert config.load(folder).params == config.load(ROOT).params
    assert not (folder / "kdflow").exists()
    assert (folder / ".git").is_dir()
    tracked = {"params.yaml", "dvc.yaml", ".gitignore", ".dvcignore", "recipes/methods.yaml", ".dvc/config"}
    command = ["git", "-C", str(folder), "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) - tracked == {".dvc/.gitignore", *map(str, stage_files(folder))}


def stage_files(folder):
    return [file.relative_to(folder) for file in (folder / "stages").glob("*.py")]


def test_init_in_a_repository_makes_no_other_one(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    package.init(tmp_path / "project")
    assert not (tmp_path / "project/.git").exists()


def test_init_without_git_configures_dvc(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    package.init(tmp_path / "project")
    assert "no_scm = true" in (tmp_path / "project/.dvc/config.local").read_text()


@pytest.mark.parametrize("kind", ["a file", "not empty"])
def test_init_refuses_what_exists(tmp_path, kind):
    target = tmp_path / "x"
    if kind == "a file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "params.yaml").write_text("mine")
    with pytest.raises(UserError, match=re.escape(f"{target}: is {kind}; give the name of a new folder")):
        package.init(target)
    assert [file.read_text() for file in (target, target / "params.yaml") if file.is_file()] == ["mine"]
