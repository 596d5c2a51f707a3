"""Loader workers: where /dev/shm is small, as the 64 MB of a container, when they are killed, and how they end."""

import gc
import os
import signal
import sys
import threading

import numpy as np
import pytest
import torch
from commands import KDFLOW, SMALL_PAIR, small_shm
from paths import ROOT
from tree import SPEC, VIEWS, make_tree

from kdflow.core.errors import UserError, is_retryable, user_message
from kdflow.data import image_files, load, loader_workers, prepare
from kdflow.data.image_files import ImageFiles


@pytest.fixture
def images(tmp_path):
    """A function that returns the training images of a small folder, read by a number of workers."""
    make_tree(tmp_path / "images")
    prepare("tree", SPEC, tmp_path / "images", tmp_path, tmp_path / "a.h5")

    def read_by(workers) -> ImageFiles:
        return load(tmp_path / "a.h5", 12, torch.device("cpu"), workers).train

    return read_by


@pytest.mark.parametrize(
    ("free", "workers", "fitted"),
    [
        (None, 8, (8, 2)),  # no /dev/shm
        (10**9, 0, (0, None)),
        (10**9, 8, (8, 2)),
        (64_000_000, 8, (8, 1)),
        (16_000_000, 8, (7, 1)),
        (4_000_000, 8, (1, 1)),
        (3_000_000, 8, (0, None)),
    ],
)
def test_workers_and_prefetch_fit_half_of_the_free_shared_memory(monkeypatch, free, workers, fitted):
    monkeypatch.setattr(loader_workers, "free_shared_memory", lambda: free)
    assert loader_workers.fit_workers(workers, 1_000_000 if free != 64_000_000 else 3_000_000) == fitted


def test_a_warning_names_the_number_of_workers_and_the_option(monkeypatch, capsys):
    monkeypatch.setattr(loader_workers, "free_shared_memory", lambda: 4_100_000)
    loader_workers.fit_workers(8, 1_000_000)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: /dev/shm has 4.1 MB free, enough for 1 of 8 loader workers")
    assert "--shm-size" in warning


def test_views_are_the_same_with_fewer_workers(monkeypatch, images):
    requests = [[[0, 1], [1, 2]], [[2, 3]]]
    expected = [batch.clone() for batch in images(2).for_training(requests, VIEWS)]
    monkeypatch.setattr(loader_workers, "free_shared_memory", lambda: 0)
    read = images(2)
    found = list(read.for_training(requests, VIEWS))
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    assert [loader.num_workers for loader in read._idle.values()] == [0]


def test_full_shared_memory_is_an_error_in_one_line(monkeypatch):
    def fail(_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(loader_workers, "get_worker_info", object)
    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(UserError, match=r"/dev/shm.* is full; .*compute.loader_workers .*--shm-size"):
        loader_workers.share(torch.zeros(1))


def test_a_killed_worker_ends_the_run_in_one_line(monkeypatch, images):
    monkeypatch.setattr(image_files, "decode", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError) as caught:
        list(images(1).for_training([[[0, 1]]], VIEWS))
    message = user_message(caught.value)
    assert message is not None
    assert "\n" not in message
    assert all(word in message for word in ("compute.loader_workers", "--shm-size"))
    assert is_retryable(caught.value)


def test_workers_do_not_run_the_exit_functions_of_threads_that_they_do_not_have(monkeypatch, images, tmp_path):
    main = os.getpid()
    monkeypatch.setattr(threading, "_threading_atexits", [lambda: os.getpid() != main and (tmp_path / "ran").touch()])
    read = images(1)
    list(read.for_training([[[0, 1]]], VIEWS))
    read._idle.clear()
    gc.collect()
    assert not (tmp_path / "ran").exists()


def test_a_silent_worker_ends_the_run_in_one_line(monkeypatch, images):
    monkeypatch.setattr(image_files, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(image_files, "decode", lambda *_, **__: signal.pause())
    with pytest.raises(RuntimeError) as caught:
        list(images(1).for_training([[[0, 1]]], VIEWS))
    assert "compute.loader_workers" in user_message(caught.value)


def test_other_errors_of_torch_are_defects():
    assert user_message(RuntimeError("shapes differ")) is None


FULL = """
import sys
from pathlib import Path
import torch
from kdflow.core.errors import exit_on_user_error
from kdflow.data import load, loader_workers
from tree import VIEWS
loader_workers.free_shared_memory = lambda: None  # others use the memory later
with exit_on_user_error():
    images = load(Path(sys.argv[1]), 12, torch.device("cpu"), 2).train
    list(images.for_training([[[i % 12, 0] for i in range(2000)]] * 4, VIEWS))
"""


@pytest.mark.slow
def test_shared_memory_that_fills_up_later_ends_the_run(tmp_path, images):
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}"}
    done = small_shm("4m", sys.executable, "-c", FULL, tmp_path / "a.h5", env=env)
    assert done.returncode == 1
    assert done.stderr.startswith("error: /dev/shm, the shared memory of loader workers, is full")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_distill_works_with_a_shared_memory_of_4_mb_and_256_kb(tmp_path):
    make_tree(tmp_path / "images")
    options = [*SMALL_PAIR, "--image-size", "64", "--workers", "2"]
    hashes = set()
    for size in ("4m", "256k"):
        out = tmp_path / size
        command = [*KDFLOW, "distill", "--data", tmp_path / "images", *options, "--out", out, "--root", ROOT]
        done = small_shm(size, *command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        hashes.add((out / "students/kd/seed0.safetensors").read_bytes())
        assert ("enough for 0 of 2" in done.stderr) == (size == "256k")
    assert len(hashes) == 1
