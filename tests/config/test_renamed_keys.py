"""Keys, kinds and files of earlier versions: they are refused, and the message gives the present name."""

import re
import shutil

import pytest
from paths import ROOT
from settings_files import DATASETS, GONE, METHODS, edit

from kdflow import config
from kdflow.core.errors import UserError
from kdflow.paper.paper import load_paper

USER_FOLDER = "recipes/user_folder.yaml"
KEYS = [  # file, path to the present key, its earlier name
    ("params.yaml", "teacher_logits", "logits"),
    ("params.yaml", "compute/max_parallel_runs", "side_by_side"),
    ("params.yaml", "compute/processes_per_run", "processes"),
    ("params.yaml", "compute/loader_workers", "workers"),
    (DATASETS, "digits/base_view", "views"),
    (DATASETS, "digits/training/lr_milestones", "decay_at"),
    (DATASETS, "digits/training/lr_gamma", "decay_by"),
    (DATASETS, "digits/training/eval_every", "test_every"),
    (USER_FOLDER, "training/lr_milestones", "decay_at"),
    (USER_FOLDER, "training/lr_gamma", "decay_by"),
    (METHODS, "kd_tlcutmix_pick/strong/view", "mix"),
    (METHODS, "kd_cutmix_only/strong/replaces_x", "instead"),
    (METHODS, "kd_tlcutmix_pick/strong/pick/criterion", "by"),
    (METHODS, "kd_tlcutmix_pick_eval/strong/pick/student_mode", "scoring"),
]
PAPER_KEYS = [
    ("params.yaml", "teacher_logits", "logits"),
    ("params.yaml", "compute/max_parallel_runs", "side_by_side"),
    ("params.yaml", "compute/processes_per_run", "processes"),
    ("params.yaml", "compute/loader_workers", "workers"),
    ("tables.yaml", "table1/rows/2/quoted_from", "quoted"),
    ("tables.yaml", "figure5/view", "mix"),
]
KINDS = {
    "table1": ("results", "accuracy_table"),
    "table6": ("costs", "cost_table"),
    "figure1": ("epochs", "epochs_figure"),
    "figure4": ("pick_ratio", "pick_ratio_figure"),
    "figure5": ("disagreement", "disagreement_figure"),
}


def rename(root, file, path, old):
    """Give the key at a path its earlier name; return the message that is expected."""
    above, _, new = path.rpartition("/")
    path_of_old = f"{above}/{old}".lstrip("/")
    edit(root, file, {path: GONE, path_of_old: "any value"})
    return f"{root / file}: {path_of_old.replace('/', '.')}: was renamed to {new}"


@pytest.mark.parametrize(("file", "path", "old"), KEYS, ids=[f"{key[0]} {key[2]}" for key in KEYS])
def test_a_renamed_key(root, file, path, old):
    expected = rename(root, file, path, old)
    with pytest.raises(UserError) as caught:
        config.load(root)
    assert str(caught.value) == expected, "one line: the present key is not reported as missing"


def test_a_renamed_key_beside_the_present_one(root):
    edit(root, "params.yaml", {"logits": "online"})
    with pytest.raises(UserError, match=r"^\S+params.yaml: logits: was renamed to teacher_logits$"):
        config.load(root)


def test_another_missing_key_is_reported_too(root):
    expected = rename(root, "params.yaml", "teacher_logits", "logits")
    edit(root, "params.yaml", {"lr": GONE, "compute/threads": GONE})
    with pytest.raises(UserError) as caught:
        config.load(root)
    file = root / "params.yaml"
    missing = [f"{file}: lr: Field required", f"{file}: compute.threads: Field required"]
    assert sorted(str(caught.value).split("\n")) == sorted([expected, *missing])


def test_a_renamed_file(root):
    (root / USER_FOLDER).rename(root / "recipes/own.yaml")
    with pytest.raises(UserError) as caught:
        config.load(root)
    assert str(caught.value) == f"{root / 'recipes/own.yaml'}: was renamed to user_folder.yaml"


@pytest.fixture
def paper(root):
    shutil.copytree(ROOT / "paper/miniature", root / "paper")
    shutil.copytree(ROOT / "tests/golden", root / "tests/golden")
    return root / "paper"


@pytest.mark.parametrize(("file", "path", "old"), PAPER_KEYS, ids=[f"{key[0]} {key[2]}" for key in PAPER_KEYS])
def test_a_renamed_key_of_a_paper(paper, file, path, old):
    expected = rename(paper, file, path, old)
    with pytest.raises(UserError) as caught:
        load_paper(paper.relative_to(paper.parent), root=paper.parent)
    assert str(caught.value) == expected


@pytest.mark.parametrize("item", KINDS)
def test_a_renamed_kind_of_a_paper(paper, item):
    old, new = KINDS[item]
    edit(paper, "tables.yaml", {f"{item}/kind": old})
    with pytest.raises(UserError, match=re.escape(f"tables.yaml: {item}.kind: {old} was renamed to {new}")):
        load_paper(paper.relative_to(paper.parent), root=paper.parent)
