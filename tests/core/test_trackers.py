"""Each experiment tracker with its real package, where it is installed: what it has written is read again."""

import subprocess
import sys
from pathlib import Path

import pytest
from tracked import read

from kdflow.core import trackers
from kdflow.core.errors import UserError
from kdflow.core.trackers import NAMES, TrackedRun

SETTINGS = {"training.lr": 0.05, "training.epochs": 4, "model.family": "resnet", "precision.tf32": False}
FIRST, SECOND = "0123456789abcdef" * 4, "fedcba9876543210" * 4


@pytest.fixture
def offline(monkeypatch):
    """Trackers with their default settings, without a network."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def write(name, run, epochs, finished):
    tracker = trackers.open_run(name, run)
    for epoch in range(1, epochs + 1):
        tracker.log(epoch, {"train/loss": 1 / epoch, "test/top1": 50.0 + epoch})
        yield
    tracker.close({"final/top1": 54.0} if finished else {}, finished=finished)


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_in_parallel_of_which_one_is_resumed(tmp_path, offline, name):
    """The resumed run sends its earlier epochs again; they are there once, as are its settings."""
    pytest.importorskip(name)
    first = TrackedRun(tmp_path, "kd seed 0", FIRST, SETTINGS)
    second = TrackedRun(tmp_path, "kd seed 1", SECOND, SETTINGS | {"seed": 1})
    interrupted, other = write(name, first, 2, finished=False), write(name, second, 4, finished=True)
    for _ in range(3):
        next(interrupted, None)
        next(other)
    list(write(name, first, 4, finished=True)), list(other)
    runs = read(name, tmp_path)
    if name in ("tensorboard", "dvclive"):
        runs = {{first.path: first.name, second.path: second.name}[path]: run for path, run in runs.items()}
    assert set(runs) == {"kd seed 0", "kd seed 1"}
    for run, settings in (runs["kd seed 0"], SETTINGS), (runs["kd seed 1"], SETTINGS | {"seed": 1}):
        assert run.curves.keys() >= {"train/loss", "test/top1"}
        assert [step for step, _ in run.curves["train/loss"]] == [1, 2, 3, 4]
        assert [value for _, value in run.curves["train/loss"]] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
        assert run.curves["test/top1"] == [(1, 51.0), (2, 52.0), (3, 53.0), (4, 54.0)]
        assert run.final == {"final/top1": 54.0}
        numbers = {key: float(value) for key, value in run.settings.items() if key in ("training.epochs", "seed")}
        assert numbers == {key: value for key, value in settings.items() if key in ("training.epochs", "seed")}
        assert {key: run.settings[key] for key in ("model.family", "precision.tf32")} == {
            "model.family": "resnet",
            "precision.tf32": "False",
        }
        assert float(run.settings["training.lr"]) == 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(UserError) as caught:
        trackers.require([name])
    assert str(caught.value) == (f"log: {name} is not installed: pip install {name}, or 'kdflow[log]' for all trackers")


def test_a_folder_of_the_name_is_no_package(tmp_path, monkeypatch):
    """Some trackers write to a folder of their name in the current folder."""
    (tmp_path / "mlflow").mkdir()
    script = (
        f"import sys; from kdflow.core import trackers; sys.path[:] = [{str(tmp_path)!r}]; trackers.require(['mlflow'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "log: mlflow is not installed" in done.stderr


def test_an_unknown_tracker_is_one_line():
    with pytest.raises(UserError, match=r"^log: unknown name 'neptune'; allowed: tensorboard, wandb, mlflow, dvclive$"):
        trackers.require(["neptune"])


def test_a_tracker_that_cannot_be_opened_is_one_line(tmp_path, offline):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"^log: tensorboard: ") as caught:
        trackers.open_run("tensorboard", TrackedRun(tmp_path, "kd seed 0", FIRST, SETTINGS))
    assert "\n" not in str(caught.value)


def test_settings_become_one_level():
    nested = {"a": {"b": 1, "c": {"d": 0.5}}, "e": None, "f": [1, 2], "g": "x", "h": True}
    assert trackers.flatten(nested) == {"a.b": 1, "a.c.d": 0.5, "f": "[1, 2]", "g": "x", "h": True}


def test_the_name_of_a_folder():
    run = TrackedRun(Path(), "resnet8 kd/é seed 0", FIRST, {})
    assert run.path == "resnet8-kd-seed-0-01234567"
