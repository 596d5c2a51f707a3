"""Checkpoints: the whole state of a run comes back, and no other run's."""

import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from kdflow.training import checkpoint
from kdflow.training.checkpoint import RunProgress
from kdflow.training.record import Epoch

CURVE = (
    Epoch(epoch=1, lr=0.1, loss=1 / 3, first_step_loss=0.7, top1=None),
    Epoch(epoch=2, lr=0.01, loss=0.1 + 0.2, first_step_loss=0.6, top1=200 / 3),
)
PROGRESS = RunProgress(run="a" * 64, started="2026-01-01T00:00:00+00:00", curve=CURVE, seconds=1 / 7, resumed=2)


def _pair(seed: int) -> tuple[nn.Module, torch.optim.SGD]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(64, 2))
    model = model.to(memory_format=torch.channels_last)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def _train(model: nn.Module, optimizer: torch.optim.SGD, seed: int, steps: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()


def _state(model: nn.Module, optimizer: torch.optim.SGD) -> list[torch.Tensor]:
    momentum = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters() if p in optimizer.state]
    return [*(value.clone() for value in model.state_dict().values()), *momentum]


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@pytest.fixture
def saved(tmp_path) -> tuple[Path, list[torch.Tensor]]:
    model, optimizer = _pair(0)
    _train(model, optimizer, 0)
    path = tmp_path / "run" / "checkpoint.safetensors"
    checkpoint.save(path, model, optimizer, PROGRESS)
    return path, _state(model, optimizer)


def test_weights_momentum_and_progress_come_back_exactly(saved):
    path, expected = saved
    model, optimizer = _pair(1)
    progress = checkpoint.load(path, model, optimizer, PROGRESS.run)
    assert len(expected) == 9 + 6
    assert _same(_state(model, optimizer), expected)
    assert progress == PROGRESS.model_copy(update={"resumed": 3})


def test_training_goes_on_as_if_never_stopped(saved):
    model, optimizer = _pair(0)
    _train(model, optimizer, 0)
    _train(model, optimizer, 1)
    again, resumed = _pair(1)
    checkpoint.load(saved[0], again, resumed, PROGRESS.run)
    _train(again, resumed, 1)
    assert _same(_state(again, resumed), _state(model, optimizer))


def test_without_a_file_there_is_nothing_to_load(tmp_path):
    model, optimizer = _pair(0)
    before = _state(model, optimizer)
    assert checkpoint.load(tmp_path / "none", model, optimizer, PROGRESS.run) is None
    assert _same(_state(model, optimizer), before)


def _refused(path: Path, run: str) -> None:
    model, optimizer = _pair(1)
    before = _state(model, optimizer)
    with pytest.raises(ValueError, match="checkpoint") as caught:
        checkpoint.load(path, model, optimizer, run)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert _same(_state(model, optimizer), before)


def test_checkpoint_of_another_run_is_refused(saved):
    _refused(saved[0], "b" * 64)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncated_checkpoint_is_refused(saved, share):
    content = saved[0].read_bytes()
    saved[0].write_bytes(content[: int(len(content) * share)])
    _refused(saved[0], PROGRESS.run)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.8, 0.99])
def test_flipped_bit_is_noticed(saved, share):
    content = bytearray(saved[0].read_bytes())
    content[int(len(content) * share)] ^= 1
    saved[0].write_bytes(content)
    _refused(saved[0], PROGRESS.run)


def test_changed_curve_is_noticed(saved):
    content = saved[0].read_bytes()
    changed = content.replace(b"66.666", b"76.666")
    assert changed != content
    saved[0].write_bytes(changed)
    _refused(saved[0], PROGRESS.run)


def test_safetensors_without_progress_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    _refused(path, PROGRESS.run)


def test_the_one_before_is_kept_and_no_more(saved):
    path, expected = saved
    content, model, optimizer = path.read_bytes(), *_pair(2)
    for seed in (2, 3):
        _train(model, optimizer, seed)
        previous, expected_previous = path.read_bytes(), expected
        checkpoint.save(path, model, optimizer, PROGRESS)
        expected = _state(model, optimizer)
        assert {file.name for file in path.parent.iterdir()} == {path.name, checkpoint.previous_path(path).name}
        assert checkpoint.previous_path(path).read_bytes() == previous != path.read_bytes()
        found, resumed = _pair(1)
        checkpoint.load(checkpoint.previous_path(path), found, resumed, PROGRESS.run)
        assert _same(_state(found, resumed), expected_previous)
    assert content != previous


def test_full_disk_leaves_the_earlier_checkpoint(saved):
    path, before = saved[0], saved[0].read_bytes()
    model, optimizer = _pair(2)
    _train(model, optimizer, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(path, model, optimizer, PROGRESS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
