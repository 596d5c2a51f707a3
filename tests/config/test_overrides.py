"""Recipes of a project: they override the built-in ones key by key, and none is needed."""

import shutil

import pytest
from paths import ROOT
from settings_files import DATASETS, METHODS, MODELS, PAIRS

from kdflow import config
from kdflow.core.errors import UserError


def refused(root):
    with pytest.raises(UserError) as caught:
        config.load(root)
    return str(caught.value).split("\n")


@pytest.mark.parametrize("content", [b"", b"# later\n", None])
@pytest.mark.parametrize("file", [DATASETS, MODELS, METHODS, PAIRS, "recipes/user_folder.yaml"])
def test_the_project_needs_no_recipes(root, file, content):
    (root / file).unlink()
    if content is not None:
        (root / file).write_bytes(content)
    assert config.load(root) == config.load(ROOT)


def test_a_project_s_recipes_override_the_built_in_ones_key_by_key(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / METHODS).write_text("kd: {ce: 0.5, kl: 0.5, tau: 2.0}\nmine: {ce: 0.2, kl: 0.8, tau: 3.0}\n")
    (tmp_path / "recipes/user_folder.yaml").write_text("side: 1.5\n")
    merged, built_in = config.load(tmp_path), config.load(ROOT)
    assert (merged.methods["kd"].tau, merged.methods["mine"].tau) == (2.0, 3.0)
    assert {**merged.methods, "kd": None} == {**built_in.methods, "kd": None, "mine": merged.methods["mine"]}
    assert merged.user_folder.side == 1.5 != built_in.user_folder.side
    assert merged.user_folder.training == built_in.user_folder.training
    assert config.merged_recipes(tmp_path)["methods"]["kd"] == {"ce": 0.5, "kl": 0.5, "tau": 2.0}


def test_a_mistake_in_an_overriding_file_is_one_line(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/user_folder.yaml").write_text("sid: 1.5\n")
    (tmp_path / METHODS).write_text("mine: {ce: 0.5, lk: 0.5}\n")
    (tmp_path / "recipes/method.yaml").write_text("kd: {}\n")
    named = {line.removeprefix(f"{tmp_path}/recipes/").split(": ")[0] for line in refused(tmp_path)}
    assert named == {"method.yaml", "methods.yaml", "user_folder.yaml"}


@pytest.mark.parametrize("content", [b"", None])
def test_params_yaml_is_needed(root, content):
    (root / "params.yaml").unlink()
    if content is not None:
        (root / "params.yaml").write_bytes(content)
    (line,) = refused(root)
    assert line.startswith(f"{root / 'params.yaml'}: ")
