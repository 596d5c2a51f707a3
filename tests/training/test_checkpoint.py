"""Checkpoints restore the whole state of a run, and only of the same run."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kdflow.training import checkpoint
from kdflow.training.checkpoint import RunProgress
from kdflow.training.record import Epoch

CURVE = (
    Epoch(epoch=1, lr=0.1, loss=1 / 3, first_step_loss=0.7, top1=None),
    Epoch(epoch=2, lr=0.01, loss=0.1 + 0.2, first_step_loss=0.6, top1=200 / 3),
)
PROGRESS = RunProgress(run="a" * 64, started="2026-01-01T00:00:00+00:00", curve=CURVE, seconds=1 / 7, resumed=2)

# Their states differ: a tensor per parameter, none, several with step counts, parameters in groups, scalar tensors.
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4),
    "SGD without momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.0),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
    "AdamW in two groups": lambda parameters: torch.optim.AdamW(
        [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 1e-3, "betas": (0.8, 0.95)}], lr=0.01
    ),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
}


def _pair(seed: int, optimizer: str = "SGD") -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(64, 2))
    model = model.to(memory_format=torch.channels_last)
    return model, OPTIMIZERS[optimizer](list(model.parameters()))


def _train(model: nn.Module, optimizer: Optimizer, seed: int, steps: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()


def _flatten(value: object) -> list[object]:
    """Return all tensors and scalars of a nested state, in order."""
    if isinstance(value, dict):
        return [item for key, part in value.items() for item in (key, *_flatten(part))]
    if isinstance(value, list | tuple):
        return [type(value), *(item for part in value for item in _flatten(part))]
    return [value.clone() if isinstance(value, Tensor) else value]


def _state(model: nn.Module, optimizer: Optimizer) -> list[object]:
    return [*_flatten(dict(model.state_dict())), *_flatten(optimizer.state_dict())]


def _same(a: list[object], b: list[object]) -> bool:
    def equal(x: object, y: object) -> bool:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return x.dtype == y.dtype and torch.equal(x, y)
        return type(x) is type(y) and x == y

    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def saved(tmp_path) -> tuple[Path, list[object]]:
    model, optimizer = _pair(0)
    _train(model, optimizer, 0)
    path = tmp_path / "run" / "checkpoint.safetensors"
    checkpoint.save(path, model, optimizer, PROGRESS)
    return path, _state(model, optimizer)


def test_weights_momentum_and_progress_are_restored_exactly(saved):
    path, expected = saved
    model, optimizer = _pair(1)
    progress = checkpoint.load(path, model, optimizer, PROGRESS.run)
    assert sum(isinstance(value, Tensor) for value in expected) == 9 + 6
    assert _same(_state(model, optimizer), expected)
    assert progress == PROGRESS.model_copy(update={"resumed": 3})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_whole_state_of_an_optimiser_is_restored_and_training_continues_with_the_same_digits(tmp_path, name):
    model, optimizer = _pair(0, name)
    _train(model, optimizer, 0)
    checkpoint.save(tmp_path / "checkpoint", model, optimizer, PROGRESS)
    resumed_model, resumed_optimizer = _pair(1, name)
    checkpoint.load(tmp_path / "checkpoint", resumed_model, resumed_optimizer, PROGRESS.run)
    assert _same(_state(resumed_model, resumed_optimizer), _state(model, optimizer))
    for pair in ((model, optimizer), (resumed_model, resumed_optimizer)):
        _train(*pair, 1)
    assert _same(_state(resumed_model, resumed_optimizer), _state(model, optimizer))


def test_a_checkpoint_before_the_first_step_has_no_state_of_the_optimiser(tmp_path):
    model, optimizer = _pair(0)
    checkpoint.save(tmp_path / "checkpoint", model, optimizer, PROGRESS)
    resumed_model, resumed_optimizer = _pair(1)
    checkpoint.load(tmp_path / "checkpoint", resumed_model, resumed_optimizer, PROGRESS.run)
    assert _same(_state(resumed_model, resumed_optimizer), _state(model, optimizer))


def test_without_a_file_nothing_is_loaded(tmp_path):
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


@pytest.mark.parametrize(("old", "new"), [(b"66.666", b"76.666"), (b"momentum_buffer", b"momentum_baffle")])
def test_changed_curve_or_optimiser_is_noticed(saved, old, new):
    content = saved[0].read_bytes()
    changed = content.replace(old, new)
    assert changed != content
    saved[0].write_bytes(changed)
    _refused(saved[0], PROGRESS.run)


def test_safetensors_without_progress_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    _refused(path, PROGRESS.run)


def test_only_the_previous_checkpoint_is_kept(saved):
    path, expected = saved
    content, model, optimizer = path.read_bytes(), *_pair(2)
    for seed in (2, 3):
        _train(model, optimizer, seed)
        previous, expected_previous = path.read_bytes(), expected
        checkpoint.save(path, model, optimizer, PROGRESS)
        expected = _state(model, optimizer)
        assert {file.name for file in path.parent.iterdir()} == {path.name, checkpoint.previous_path(path).name}
        assert checkpoint.previous_path(path).read_bytes() == previous != path.read_bytes()
        other, resumed = _pair(1)
        checkpoint.load(checkpoint.previous_path(path), other, resumed, PROGRESS.run)
        assert _same(_state(other, resumed), expected_previous)
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
