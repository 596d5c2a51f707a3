"""Two processes against one: the same numbers but for rounding. tests/ranks.py is what the two of them run."""

import multiprocessing
import socket

import pytest
import ranks
import torch
from torch import nn

from kdflow.training import distributed


def processes(folder, device):
    """What each of two processes ended with, by method."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["ranks", "torch._dynamo"])
    both = [fork.Process(target=ranks.main, args=(rank, port, folder, device), daemon=True) for rank in range(2)]
    for process in both:
        process.start()
    try:
        for process in both:
            process.join(120)
            assert process.exitcode == 0, "see its traceback"
    finally:
        for process in both:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return processes(tmp_path_factory.mktemp("ranks"), "cpu")


def trained_as_one(two, name, folder, tolerance):
    one = ranks.fit(name, folder / "alone")
    for found in (process[name] for process in two):
        for (loss, pick_ratio, top1), (loss1, pick_ratio1, top11) in zip(found["curve"], one["curve"], strict=True):
            assert loss == pytest.approx(loss1, rel=tolerance)
            assert pick_ratio == (pick_ratio1 and pytest.approx(pick_ratio1, rel=10 * tolerance))
            assert top1 == top11
        assert list(found["state"]) == list(one["state"]), "a plain student's keys"
        for key, value in one["state"].items():
            torch.testing.assert_close(found["state"][key], value, rtol=10 * tolerance, atol=tolerance, msg=key)
        torch.testing.assert_close(found["logits"], one["logits"], rtol=100 * tolerance, atol=10 * tolerance)
    assert all(torch.equal(value, two[1][name]["state"][key]) for key, value in two[0][name]["state"].items())


@pytest.mark.parametrize("name", ranks.TOGETHER)
def test_two_processes_train_as_one_does(two, tmp_path, name):
    trained_as_one(two, name, tmp_path, 1e-5)


def test_two_cards_train_as_one_processor_does(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("no two GPUs here")
    two = processes(tmp_path, "cuda")
    for name in ranks.TOGETHER:
        trained_as_one(two, name, tmp_path / name, 1e-4)


def test_alone_nothing_is_shared():
    rows = torch.randn(5, 2)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    assert distributed.shard(5) == slice(0, 5)
    assert distributed.all_gather_rows(rows, 5) is rows
    assert distributed.scale_to_global_mean(rows.sum(), 5) == distributed.all_reduce_mean(rows.sum()) == rows.sum()
    assert distributed.wrap_ddp(model) is model and type(model[1]) is nn.BatchNorm2d
