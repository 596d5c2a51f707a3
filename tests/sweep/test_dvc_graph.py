"""What of DVC's graph is stale, by the real DVC; and what targets a paper has."""

import os
import random
import shutil
import subprocess
import sys

import pytest
from papers import paper_of
from ruamel.yaml import YAML

from kdflow.core.errors import UserError
from kdflow.sweep import dvc_graph
from kdflow.sweep.processes import NO_TELEMETRY

DVC = (sys.executable, "-m", "dvc")


def run(root, *command):
    environment = {**os.environ, **NO_TELEMETRY, "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, env=environment).stdout


# a -> b -> d, a -> c -> d, e alone: by what each reads.
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
    monkeypatch.chdir(tmp_path)  # DVC names stages as they are seen from here
    return tmp_path


def names(stages):
    return [stage.name for stage in stages]


def test_all_is_stale_at_first_in_an_order_that_can_be_run(root):
    found = dvc_graph.stale([])
    assert {stage.name: sorted(stage.needs) for stage in found} == NEEDS
    assert all(set(stage.needs) <= set(names(found)[:place]) for place, stage in enumerate(found))
    assert sorted(names(dvc_graph.stale(["b"]))) == ["a", "b"], "what is not asked for is left out"


def test_what_is_edited_is_stale_with_all_that_hangs_on_it(root):
    """As `dvc repro` itself would run them; by the hand-written closure for files chosen at random."""
    run(root, *DVC, "repro", "-q")
    assert dvc_graph.stale([]) == []
    draw = random.Random(0)
    for _ in range(2):
        edited = set(draw.sample(sorted(NEEDS), draw.randint(1, 2)))
        for name in edited:
            (root / f"{name}.txt").write_text(f"{name} {draw.random()}")
        expected = set(edited)
        for name, needs in NEEDS.items():  # in an order that can be run
            if expected & set(needs):
                expected.add(name)
        found = dvc_graph.stale([])
        assert set(names(found)) == expected
        for stage in found:
            assert set(stage.needs) == expected & set(NEEDS[stage.name])
        run(root, *DVC, "repro", "-s", *names(found))
        assert dvc_graph.stale([]) == []


def test_what_is_forced_is_run_though_it_is_up_to_date(root):
    run(root, *DVC, "repro", "-q")
    assert sorted(names(dvc_graph.stale(["b", "e"], ["b"]))) == ["b"]


def test_what_dvc_refuses_is_refused_in_a_line(root):
    with pytest.raises(UserError, match=r"dvc: .*nonsense"):
        dvc_graph.stale(["nonsense"])
    (root / "dvc.yaml").write_text("stages: [")
    with pytest.raises(UserError, match=r"dvc: .*dvc\.yaml"):
        dvc_graph.stale([])


def test_kinds_are_the_names_of_stages():
    kinds = {
        "paper/dvc.yaml:cell@x-y": "cell",
        "teacher": "teacher",
        "distill@kd": "distill",
        "p/dvc.yaml:table3": "table3",
    }
    assert {name: dvc_graph.Stage(name, ()).kind for name in kinds} == kinds


def test_among_forgets_what_is_not_among():
    stages = [dvc_graph.Stage("a", ()), dvc_graph.Stage("b", ("a",)), dvc_graph.Stage("c", ("a", "b"))]
    assert dvc_graph.restrict(stages[1:]) == [dvc_graph.Stage("b", ()), dvc_graph.Stage("c", ("b",))]


def test_targets_are_found_by_name_and_by_pattern(tmp_path):
    paper = paper_of(tmp_path)
    assert dvc_graph.targets(paper, ["table1", "report"]) == ["paper/dvc.yaml:table1", "paper/dvc.yaml:report"]
    found = dvc_graph.targets(paper, ["cell@*-kd", "cell@digits-resnet20-resnet8-kd", "cell@*-kd"])
    assert found == [f"paper/dvc.yaml:cell@digits-resnet20-{student}-kd" for student in ("resnet8", "resnet14")]
    assert len(dvc_graph.targets(paper, ["cell@*"])) == len(paper.cells)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("tabel1", "targets: unknown name 'tabel1'; did you mean 'table1'?"),
        ("cell@*-crd", "targets: cell@\\*-crd matches none of the \\d+ targets of paper/dvc.yaml"),
        ("digits-resnet20-resnet8-kd", "did you mean 'cell@digits-resnet20-resnet8-kd'?"),
        ("", "targets: unknown name ''"),
    ],
)
def test_targets_that_are_not_there_are_refused(tmp_path, pattern, says):
    with pytest.raises(UserError, match=says):
        dvc_graph.targets(paper_of(tmp_path), ["table1", pattern])


def test_a_remote_is_there_or_said_to_be_missing(root):
    with pytest.raises(UserError, match="share: DVC has no default remote"):
        dvc_graph.check_remote("share")
    run(root, *DVC, "remote", "add", "-d", "shared", "elsewhere")
    dvc_graph.check_remote("share")
    shutil.rmtree(root / ".dvc")
    with pytest.raises(UserError, match="dvc: ") as caught:
        dvc_graph.check_remote("share")
    assert "\n" not in str(caught.value)
