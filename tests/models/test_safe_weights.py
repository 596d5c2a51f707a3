"""Weights on disk: loaded exactly as saved, or refused in one line without a change to the model."""

import hashlib
import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hostile import Touch
from torch import nn

from kdflow.config import Model
from kdflow.core.errors import UserError
from kdflow.models import create_model, load_exact, save_weights


def _model(seed: int, depth: int = 8, classes: int = 4, widths: tuple[int, ...] = (8, 8, 8, 8)) -> nn.Module:
    torch.manual_seed(seed)
    recipe = Model(family="resnet", options={"depth": depth, "widths": list(widths)})
    model = create_model("small", recipe, classes, 8)
    for name, value in model.state_dict().items():  # running statistics that are not the initial ones
        if "running" in name:
            value.uniform_(0.5, 1.5)
    return model


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "whole.safetensors"
    save_weights(_model(0), path)
    return path


def _refused(path: Path, *mentions: str, sha256: str | None = None) -> str:
    model = _model(1)
    before = _state(model)
    with pytest.raises(UserError) as caught:
        load_exact(model, path, sha256)
    message = str(caught.value)
    assert "\n" not in message
    for mention in (str(path), *mentions):
        assert mention in message
    assert _same(_state(model), before)
    return message


# --- loading ---------------------------------------------------------------------------------------------


def test_safetensors_roundtrip_is_exact(tmp_path):
    source, path = _model(0).to(memory_format=torch.channels_last), tmp_path / "sub" / "w.safetensors"
    written = save_weights(source, path)
    assert written == hashlib.sha256(path.read_bytes()).hexdigest()
    target = _model(1)
    assert not _same(_state(source), _state(target))
    assert load_exact(target, path, written) == written
    assert _same(_state(source), _state(target))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("as_zip", [True, False])
def test_torch_state_dict_is_loaded_exactly(tmp_path, as_zip):
    source, target, path = _model(0), _model(1), tmp_path / "w.pth"
    torch.save(source.state_dict(), path, _use_new_zipfile_serialization=as_zip)
    assert load_exact(target, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert _same(_state(source), _state(target))


def test_saving_twice_gives_the_same_bytes(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    assert save_weights(_model(0), a) == save_weights(_model(0).to(memory_format=torch.channels_last), b)
    assert a.read_bytes() == b.read_bytes()


# --- refusals ---------------------------------------------------------------------------------------------


def test_wrong_hash_is_refused(saved):
    _refused(saved, "sha256", "0" * 64, hashlib.sha256(saved.read_bytes()).hexdigest(), sha256="0" * 64)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("other", "mention"),
    [
        ({"classes": 5}, "fc.weight"),
        ({"depth": 14}, "unknown"),
        ({"widths": (8, 8, 8, 12)}, "layer3.0.conv1.weight is [12, 8, 3, 3] instead of [8, 8, 3, 3]"),
    ],
)
def test_other_architecture_is_refused(tmp_path, suffix, other, mention):
    path = tmp_path / f"other.{suffix}"
    if suffix == "pth":
        torch.save(_model(0, **other).state_dict(), path)
    else:
        save_weights(_model(0, **other), path)
    _refused(path, "another architecture", mention)


@pytest.mark.parametrize("key", ["conv1.weight", "layer3.0.bn2.running_var", "bn1.num_batches_tracked", "fc.bias"])
def test_one_missing_or_renamed_key_is_refused(tmp_path, key):
    state = _model(0).state_dict()
    value = state.pop(key)
    path = tmp_path / "w.pth"
    torch.save(state, path)
    _refused(path, f"{key} is missing")
    torch.save({**state, f"module.{key}": value}, path)
    _refused(path, f"{key} is missing", f"module.{key} is unknown")


def test_missing_file_and_folder_are_refused(tmp_path):
    _refused(tmp_path / "nowhere.safetensors", "no such file")
    _refused(tmp_path, "folder")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.9999])
def test_truncated_safetensors_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    _refused(saved)


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_torch_file_is_refused(tmp_path, share, as_zip):
    path = tmp_path / "w.pth"
    torch.save(_model(0).state_dict(), path, _use_new_zipfile_serialization=as_zip)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    _refused(path)


def test_random_bytes_are_refused(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for size in (1, 7, 8, 9, 100, 10_000):
        for trial in range(5):
            path = tmp_path / f"{size}_{trial}.safetensors"
            path.write_bytes(bytes(torch.randint(256, (size,), generator=generator).tolist()))
            _refused(path)


def test_text_is_refused(tmp_path):
    path = tmp_path / "page.pth"
    path.write_text("<html>\n<body>404\n</body>\n</html>\n" * 10)
    _refused(path)


def test_safetensors_of_an_unknown_type_is_refused(tmp_path):
    for kind in ("F4", "F8_E8M0", "XYZ"):
        header = json.dumps({"fc.bias": {"dtype": kind, "shape": [4], "data_offsets": [0, 4]}}).encode()
        path = tmp_path / f"{kind}.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
        _refused(path)


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle"])
def test_pickle_that_would_run_code_is_refused(tmp_path, kind):
    evil, path = tmp_path / "evil", tmp_path / "w.pth"
    content = {**_model(0).state_dict(), "extra": Touch(evil)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    _refused(path)
    assert not evil.exists()
    if kind != "pickle":
        torch.load(path, weights_only=False)  # the pickle does run code
        assert evil.exists()


def test_whole_module_is_refused(tmp_path):
    path = tmp_path / "module.pth"
    torch.save(_model(0), path)
    _refused(path)


@pytest.mark.parametrize(
    "content",
    [{"epoch": 3}, {"model": {"fc.bias": torch.zeros(4)}}, [torch.zeros(4)], torch.zeros(4), "text", None, {}],
)
def test_a_file_without_a_dict_of_tensors_is_refused(tmp_path, content):
    path = tmp_path / "w.pth"
    torch.save(content, path)
    _refused(path)
