"""Several processes compute the numbers of one, up to rounding. tests/helpers/ranks.py is what each of them runs."""

import multiprocessing
import socket

import pytest
import ranks
import torch
from torch import nn

from kdflow.training import distributed


def processes(folder, device, count=2, names=()):
    """Train by several processes; return the results of each by method."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["ranks", "torch._dynamo"])
    args = [(rank, port, folder, device, count, names) for rank in range(count)]
    started = [fork.Process(target=ranks.main, args=arguments, daemon=True) for arguments in args]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join(120)
            assert process.exitcode == 0, "its traceback is in the captured output"
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return processes(tmp_path_factory.mktemp("ranks"), "cpu")


def assert_trained_as_by_one(two, name, folder, tolerance, epochs=2):
    one = ranks.fit(name, folder / f"alone-{name}", epochs=epochs)
    atol = tolerance if epochs == 2 else 10 * tolerance
    for result in (process[name] for process in two):
        for (loss, pick_ratio, top1), (loss1, pick_ratio1, top11) in zip(result["curve"], one["curve"], strict=True):
            assert loss == pytest.approx(loss1, rel=tolerance)
            assert pick_ratio == (pick_ratio1 and pytest.approx(pick_ratio1, rel=10 * tolerance))
            assert top1 == top11
        assert list(result["state"]) == list(one["state"]), "the keys of a plain student"
        for key, value in one["state"].items():
            torch.testing.assert_close(result["state"][key], value, rtol=10 * tolerance, atol=atol, msg=key)
        torch.testing.assert_close(result["logits"], one["logits"], rtol=100 * tolerance, atol=10 * tolerance)
    assert all(torch.equal(value, two[1][name]["state"][key]) for key, value in two[0][name]["state"].items())


@pytest.mark.parametrize("name", ranks.METHODS_TO_TRAIN)
def test_two_processes_train_as_one_does(two, tmp_path, name):
    assert_trained_as_by_one(two, name, tmp_path, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.long), 3])
def test_losses_of_a_batch_are_those_of_one_process_over_20_steps(tmp_path, count):
    """Batches have 17 and 3 images, so that shares differ in size."""
    several = processes(tmp_path, "cpu", count, ranks.LOSSES_TO_TRAIN)
    for name in ranks.LOSSES_TO_TRAIN:
        assert_trained_as_by_one(several, name, tmp_path, 1e-5, epochs=10)


def test_two_gpus_train_as_one_cpu_does(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has fewer than two GPUs")
    two = processes(tmp_path, "cuda")
    for name in ranks.METHODS_TO_TRAIN:
        assert_trained_as_by_one(two, name, tmp_path / name, 1e-4)


def test_one_process_shares_nothing():
    rows = torch.randn(5, 2)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    assert distributed.shard(5) == slice(0, 5)
    assert distributed.all_gather_rows(rows, 5) is rows
    assert distributed.scale_to_global_mean(rows.sum(), 5) == distributed.all_reduce_mean(rows.sum()) == rows.sum()
    assert distributed.wrap_ddp(model) is model and type(model[1]) is nn.BatchNorm2d
