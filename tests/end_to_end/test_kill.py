"""Runs that are killed repeatedly at random moments: they end with the digits of a run that was not interrupted.

KDFLOW_KILLS=20 kills the run of every method 20 times; without it, one method of each kind of state is killed once.
"""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from small import METHODS, TEACHER, run_of

from kdflow.config import Compute, DatasetSource
from kdflow.data import prepare
from kdflow.launch import parallel_runs
from kdflow.models import create_model, save_weights
from kdflow.training import checkpoint
from kdflow.training.job import Job
from kdflow.training.record import Budget, RunLog, read_record

pytestmark = pytest.mark.slow

KILLS_SETTING = os.environ.get("KDFLOW_KILLS")
KILLS = int(KILLS_SETTING or 1)
# Each has another kind of state: none, a pool, modules with momentum, banks and constants of the first batch.
SOME = ("ce", "kd_tlcutmix_pick", "vid_kd", "crd_kd", "crd_kd_tlcutmix_pick")
EPOCHS = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A dataset of 40 small digits for training, and a teacher's weights; the fork server has been started."""
    folder = tmp_path_factory.mktemp("inputs")
    spec = DatasetSource(reader="digits", classes=10, image_size=8, train_images=40, test_images=1757)
    prepare("digits", spec, None, folder, folder / "digits.h5")
    save_weights(create_model("larger", TEACHER, 10, 8), folder / "teacher.safetensors")
    _seconds(_job(folder, folder / "warm", "ce"))
    return folder


@pytest.fixture(scope="module")
def seen():
    """Counts of the events that the kills of all methods hit."""
    return Counter()


def _job(inputs: Path, folder: Path, method: str) -> Job:
    run = run_of(METHODS[method], epochs=EPOCHS, eval_every=EPOCHS // 2)
    run = run.model_copy(update={"dataset": "digits", "train_images": 20, "classes": 10})
    return Job(
        name="seed 3",
        run=run,
        budget=Budget(epochs=EPOCHS, full_epochs=EPOCHS, train_images=20, full_train_images=40, demo=True),
        dataset=inputs / "digits.h5",
        teacher=inputs / "teacher.safetensors" if run.teacher else None,
        weights=folder / "out/weights.safetensors",
        log=folder / "out/log.json",
        views_store=None,
        work_dir=folder / "scratch",
        compute=Compute(
            device="cpu", threads=1, max_parallel_runs=None, replay_gb=1.0, loader_workers=0, processes_per_run=1
        ),
    )


def _seconds(job: Job) -> float:
    """Return the seconds of a run that is not interrupted."""
    began = time.perf_counter()
    _, process = parallel_runs._start(job)
    process.join(120)
    assert process.exitcode == 0
    return time.perf_counter() - began


def _killed(job: Job, after: float, seen: Counter) -> bool:
    """Start the run and kill it `after` seconds; return whether it was still running then."""
    _, process = parallel_runs._start(job)
    process.join(after)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    if process.exitcode == 0:
        return False
    seen["kills"] += 1
    seen["with a checkpoint"] += any(job.work_dir.glob("runs/*/checkpoint.safetensors"))
    seen["while one was written"] += any(job.work_dir.glob("runs/*/.checkpoint*"))
    return True


@pytest.mark.parametrize("method", METHODS if KILLS_SETTING else SOME)
def test_a_run_that_is_killed_ends_with_the_same_digits(inputs, seen, tmp_path, method):
    alone = _job(inputs, tmp_path / "alone", method)
    seconds, moments, kills, lives = _seconds(alone), random.Random(method), 0, 0
    earliest = 0 if KILLS_SETTING else seconds / 2  # the only kill must come after a checkpoint
    expected = read_record(alone.log, RunLog)
    assert expected.timing.resumed == 0
    while kills < KILLS:
        lives += 1
        job = _job(inputs, tmp_path / f"life {lives}", method)
        while kills < KILLS and _killed(job, moments.uniform(earliest, seconds), seen):
            kills += 1
        if not job.log.exists():
            _seconds(job)
        log = read_record(job.log, RunLog)
        seen["resumed"] += log.timing.resumed
        assert job.weights.read_bytes() == alone.weights.read_bytes()
        assert log.model_dump(exclude={"timing"}) == expected.model_dump(exclude={"timing"})
        assert sorted(job.log.parent.iterdir()) == [job.log, job.weights]
        (scratch,) = (job.work_dir / "runs").iterdir()
        last = scratch / "checkpoint.safetensors"
        assert sorted(scratch.iterdir()) == [checkpoint.previous_path(last), last, scratch / "lock"]


def test_the_kills_hit(seen):
    """Without hits, the test above could not fail."""
    print(dict(seen))
    assert seen["kills"] > 0
    assert seen["resumed"] >= seen["kills"] / 4
    assert KILLS_SETTING is None or seen["while one was written"] > 0
