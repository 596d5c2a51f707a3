"""Two processes against one: the same numbers but for rounding. tests/ranks.py is what the two of them run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import TOGETHER, fit
from torch import nn

from kdflow import distributed
from kdflow.errors import UserError


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes ended with, by method."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("ranks.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "checked\n" * 2
    assert {file.name for file in folder.glob("kd*")} == {
        f"{name}{before}" for name in TOGETHER if name != "ce" for before in ("", ".before")
    }, "checkpoints are written by the first process alone"
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_train_as_one_does(two, tmp_path, name):
    one = fit(name, tmp_path / "alone")
    for found in (process[name] for process in two):
        for (loss, pick_ratio, top1), (loss1, pick_ratio1, top11) in zip(found["curve"], one["curve"], strict=True):
            assert loss == pytest.approx(loss1, rel=1e-5)
            assert pick_ratio == pytest.approx(pick_ratio1, rel=1e-4)
            assert top1 == top11
        assert list(found["state"]) == list(one["state"]), "a plain student's keys"
        for key, value in one["state"].items():
            torch.testing.assert_close(found["state"][key], value, rtol=1e-4, atol=1e-5, msg=key)
        torch.testing.assert_close(found["logits"], one["logits"], rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, two[1][name]["state"][key]) for key, value in two[0][name]["state"].items())


def test_alone_nothing_is_shared():
    rows = torch.randn(5, 2)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    assert distributed.share(5) == slice(0, 5)
    assert distributed.of_all(rows, 5) is rows
    assert distributed.part_of_mean(rows.sum(), 5) == distributed.average(rows.sum()) == rows.sum()
    assert distributed.parallel(model) is model and type(model[1]) is nn.BatchNorm2d


def test_batch_norm_of_another_kind_is_refused(monkeypatch):
    class Fused(nn.BatchNorm2d):
        """Does more than its parent, as timm's does."""

    monkeypatch.setattr(distributed, "processes", lambda: 2)
    with pytest.raises(UserError, match="the model's 1 is a Fused"):
        distributed.parallel(nn.Sequential(nn.Conv2d(3, 8, 1), Fused(8)))
