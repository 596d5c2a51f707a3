"""The events of runs in trackers: real runs in TensorBoard, and trackers that fail."""

import contextlib
import re
import sys

import pytest
from small import METHODS, run_of
from tracked import read

from kdflow.config import Compute, DatasetSource
from kdflow.core import trackers
from kdflow.core.errors import UserError
from kdflow.core.progress import EpochDone, Failed, Note, Started
from kdflow.core.trackers import FINAL, Tracker
from kdflow.data import prepare
from kdflow.launch.tracking import FOLDER, Tracking, exported_epoch
from kdflow.training.job import Job
from kdflow.training.record import Budget, RunLog, read_record
from kdflow.training.run import run_job


class StoppedError(Exception):
    """Raised in the middle of a run."""


@pytest.fixture
def job(tmp_path):
    """A run of three epochs on 40 digits, tested after the second and the third."""
    spec = DatasetSource(reader="digits", classes=10, image_size=8, train_images=40, test_images=1757)
    prepare("digits", spec, None, tmp_path, tmp_path / "digits.h5")
    run = run_of(METHODS["ce"], epochs=3)
    compute = {"device": "cpu", "threads": 1, "max_parallel_runs": None, "processes_per_run": 1, "replay_gb": 1.0}
    return Job(
        name="seed 3",
        run=run.model_copy(update={"dataset": "digits", "train_images": 20, "classes": 10}),
        budget=Budget(epochs=3, full_epochs=3, train_images=20, full_train_images=40, demo=True),
        dataset=tmp_path / "digits.h5",
        teacher=None,
        views_store=None,
        weights=tmp_path / "weights.safetensors",
        log=tmp_path / "log.json",
        work_dir=tmp_path / "work",
        compute=Compute(**compute, loader_workers=0, log=("tensorboard",)),
    )


def test_an_interrupted_run_has_each_epoch_of_its_record_once(job):
    """It is stopped after its second epoch, and trained to its end by a second call."""
    pytest.importorskip("tensorboard")
    for stop_after in (2, None):
        with contextlib.suppress(StoppedError), Tracking("ce", [job], print) as tracking:

            def emit(event, tracking=tracking, stop_after=stop_after):
                tracking.follow(event)
                if isinstance(event, EpochDone) and event.values["epoch"] == stop_after:
                    raise StoppedError

            run_job(job, emit)
        (written,) = read("tensorboard", job.work_dir / FOLDER).values()
        assert [epoch for epoch, _ in written.curves["train/loss"]] == list(range(1, (stop_after or 3) + 1))
    log = read_record(job.log, RunLog)
    assert log.timing.resumed == 1
    for tag, key in (("train/loss", "loss"), ("test/top1", "top1"), ("lr", "lr")):
        expected = [(one.epoch, getattr(one, key)) for one in log.curve if getattr(one, key) is not None]
        steps, values = zip(*written.curves[tag], strict=True)
        assert steps == tuple(step for step, _ in expected)
        assert values == pytest.approx([value for _, value in expected])
    assert written.final == {FINAL: pytest.approx(log.curve[-1].top1)}
    assert float(written.settings["training.lr"]) == pytest.approx(job.run.training.lr)
    assert written.settings["architecture"] == job.run.architecture


def test_without_trackers_nothing_is_written(job):
    plain = job.model_copy(update={"compute": job.compute.model_copy(update={"log": ()})})
    with Tracking("ce", [plain], print) as tracking:
        run_job(plain, tracking.follow)
    assert not (job.work_dir / FOLDER).exists()


# --- trackers that fail ----------------------------------------------------------------------------------------


class _Memory(Tracker):
    """A tracker that keeps what it gets, and fails at the epoch `full`."""

    full = 0

    def __init__(self, run):
        self.epochs, self.closed = [], None
        opened.append(self)

    def log(self, epoch, values):
        if epoch == self.full:
            raise RuntimeError("no space\nleft")
        self.epochs.append(epoch)

    def close(self, final, *, finished):
        self.closed = final, finished


opened: list[_Memory] = []


@pytest.fixture
def two(monkeypatch, job):
    """The job with two trackers, of which the second fails at the third epoch."""
    monkeypatch.setattr(trackers, "require", list)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", _Memory)
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", type("Full", (_Memory,), {"full": 3}))
    opened.clear()
    return job.model_copy(update={"compute": job.compute.model_copy(update={"log": ("wandb", "mlflow")})})


def epoch(number):
    return EpochDone("seed 3", {"epoch": number, "lr": 0.1, "loss": 1.0, "top1": None})


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(two):
    notes = []
    with Tracking("ce", [two], notes.append) as tracking:
        for event in (Started("seed 3", "k" * 64), *map(epoch, range(1, 5)), Failed("seed 3", "x", retryable=False)):
            tracking.follow(event)
    assert notes == [Note("seed 3", "log: mlflow: no space left; the run goes on")]
    good, bad = opened
    assert (good.epochs, good.closed) == ([1, 2, 3, 4], ({}, False))
    assert (bad.epochs, bad.closed) == ([1, 2], None)


def test_runs_that_are_interrupted_are_closed(two):
    with pytest.raises(KeyboardInterrupt), Tracking("ce", [two], print) as tracking:
        tracking.follow(Started("seed 3", "k" * 64))
        raise KeyboardInterrupt
    assert [one.closed for one in opened] == [({}, False)] * 2


def test_with_early_stopping_the_final_accuracy_is_that_of_the_best_epoch(two):
    run_job(two, lambda event: None)
    log = read_record(two.log, RunLog)
    curve = tuple(
        one.model_copy(update={"held_out_top1": held_out, "top1": top1})
        for one, held_out, top1 in zip(log.curve, (50.0, 70.0, 60.0), (1.0, 2.0, 3.0), strict=True)
    )
    assert exported_epoch(log.model_copy(update={"curve": curve})).top1 == 3.0, "the last one's weights are exported"
    training = log.settings.training.model_copy(update={"early_stop": 1, "val_share": 0.1})
    settings = log.settings.model_copy(update={"training": training})
    assert exported_epoch(log.model_copy(update={"curve": curve, "settings": settings})).top1 == 2.0


def test_a_tracker_that_is_not_installed_is_refused_before_a_run_starts(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=re.escape("log: tensorboard is not installed: pip install tensorboard")):
        Tracking("ce", [job], print)
