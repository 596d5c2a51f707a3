"""Stale stages, compared with the real DVC, and the targets of a paper."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from papers import make_paper
from ruamel.yaml import YAML

from kdflow.core.errors import UserError
from kdflow.sweep import dvc_graph
from kdflow.sweep.processes import NO_TELEMETRY

DVC = (sys.executable, "-m", "dvc")
PROJECT = Path()


def run(root, *command):
    environment = {**os.environ, **NO_TELEMETRY, "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, env=environment).stdout


# a -> b -> d, a -> c -> d, e alone: each stage and the stages whose outputs it reads.
NEEDS = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": []}


@pytest.fixture
def root(tmp_path, monkeypatch):
    stages = {
        name: {
            "cmd": f"cat {name}.txt {' '.join(needs)} > {name}",
            "deps": [f"{name}.txt", *needs],
            "outs": [name],
        }
        for name, needs in NEEDS.items()
    }
    YAML().dump({"stages": stages}, tmp_path / "dvc.yaml")
    for name in NEEDS:
        (tmp_path / f"{name}.txt").write_text(name)
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, *DVC, "init", "-q")
    monkeypatch.chdir(tmp_path)  # DVC's names of stages are relative to the current folder
    return tmp_path


def names(stages):
    return [stage.name for stage in stages]


def test_at_first_all_stages_are_stale_and_come_after_their_needs(root):
    stages = dvc_graph.stale(PROJECT)
    assert {stage.name: sorted(stage.needs) for stage in stages} == NEEDS
    assert all(set(stage.needs) <= set(names(stages)[:i]) for i, stage in enumerate(stages))
    assert sorted(names(dvc_graph.stale(PROJECT, ["b"]))) == ["a", "b"], "only wanted stages and their needs"


def test_after_an_edit_a_stage_and_all_that_depend_on_it_are_stale(root):
    """The files are chosen at random, and `dvc repro` must run the same stages."""
    run(root, *DVC, "repro", "-q")
    assert dvc_graph.stale(PROJECT) == []
    draw = random.Random(0)
    for _ in range(2):
        edited = set(draw.sample(sorted(NEEDS), draw.randint(1, 2)))
        for name in edited:
            (root / f"{name}.txt").write_text(f"{name} {draw.random()}")
        expected = set(edited)
        for name, needs in NEEDS.items():  # in an order that can be run
            if expected & set(needs):
                expected.add(name)
        stages = dvc_graph.stale(PROJECT)
        assert set(names(stages)) == expected
        for stage in stages:
            assert set(stage.needs) == expected & set(NEEDS[stage.name])
        run(root, *DVC, "repro", "-s", *names(stages))
        assert dvc_graph.stale(PROJECT) == []


def test_a_forced_stage_runs_even_if_it_is_up_to_date(root):
    run(root, *DVC, "repro", "-q")
    assert sorted(names(dvc_graph.stale(PROJECT, ["b", "e"], ["b"]))) == ["b"]


def test_an_error_of_dvc_is_one_line(root):
    with pytest.raises(UserError, match=r"dvc: .*nonsense"):
        dvc_graph.stale(PROJECT, ["nonsense"])
    (root / "dvc.yaml").write_text("stages: [")
    with pytest.raises(UserError, match=r"dvc: .*dvc\.yaml"):
        dvc_graph.stale(PROJECT)


def test_the_kind_of_a_stage_is_its_name_without_file_and_item():
    kinds = {
        "paper/dvc.yaml:cell@x-y": "cell",
        "teacher": "teacher",
        "distill@kd": "distill",
        "p/dvc.yaml:table3": "table3",
    }
    assert {name: dvc_graph.Stage(name, ()).kind for name in kinds} == kinds


def test_restrict_removes_needs_outside_of_the_stages():
    stages = [dvc_graph.Stage("a", ()), dvc_graph.Stage("b", ("a",)), dvc_graph.Stage("c", ("a", "b"))]
    assert dvc_graph.restrict(stages[1:]) == [dvc_graph.Stage("b", ()), dvc_graph.Stage("c", ("b",))]


def test_targets_match_names_and_patterns(tmp_path):
    paper = make_paper(tmp_path)
    assert dvc_graph.targets(paper, ["table1", "report"]) == ["paper/dvc.yaml:table1", "paper/dvc.yaml:report"]
    matches = dvc_graph.targets(paper, ["cell@*-kd", "cell@digits-resnet20-resnet8-kd", "cell@*-kd"])
    assert matches == [f"paper/dvc.yaml:cell@digits-resnet20-{student}-kd" for student in ("resnet8", "resnet14")]
    assert len(dvc_graph.targets(paper, ["cell@*"])) == len(paper.cells)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("tabel1", "targets: unknown name 'tabel1'; did you mean 'table1'?"),
        ("cell@*-crd", "targets: cell@\\*-crd matches none of the \\d+ targets of paper/dvc.yaml"),
        ("digits-resnet20-resnet8-kd", "did you mean 'cell@digits-resnet20-resnet8-kd'?"),
        ("", "targets: unknown name ''"),
    ],
)
def test_unknown_targets_are_refused(tmp_path, pattern, message):
    with pytest.raises(UserError, match=message):
        dvc_graph.targets(make_paper(tmp_path), ["table1", pattern])


def test_a_missing_default_remote_is_refused(root):
    with pytest.raises(UserError, match="sync_remote: DVC has no default remote"):
        dvc_graph.check_remote(PROJECT, "sync_remote")
    run(root, *DVC, "remote", "add", "-d", "shared", "folder")
    dvc_graph.check_remote(PROJECT, "sync_remote")
    shutil.rmtree(root / ".dvc")
    with pytest.raises(UserError, match="dvc: ") as caught:
        dvc_graph.check_remote(PROJECT, "sync_remote")
    assert "\n" not in str(caught.value)
