"""Checkpoints that do not fit, are damaged or hostile: refused with the reason, in bounded memory."""

import argparse
import os
import pickle
import re
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoints import KUANGLIU, ORIGIN, STATE, model_of, with_one
from hostile import Call, Touch

from kdflow.core.errors import UserError
from kdflow.models import convert_weights


def saved(content, **options):
    return lambda file: torch.save(content, file, **options)


def repacked(method=zipfile.ZIP_STORED, share=1.0, again=False):
    """Write a file of torch.save again as another zip archive."""

    def write(file):
        torch.save(STATE, file)
        with zipfile.ZipFile(file) as archive:
            entries = [(name, archive.read(name)) for name in archive.namelist()]
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, content in entries:
                archive.writestr(name, content)
            if again:
                archive.writestr(*entries[0])
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return write


def bomb(file):
    """Write 100 MB of zeros in 400 kB."""
    state = {"conv1.weight": torch.zeros(25_000_000)}
    torch.save(state, file)
    with zipfile.ZipFile(file) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in entries:
            archive.writestr(name, content)


def legacy_claim(file):
    """Write an old file whose only storage claims 2**30 numbers."""
    torch.save({"fc.bias": torch.zeros(4)}, file, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    claim = pickle.dumps(2**30, protocol=2)[2:-1]
    assert content.count(b"cpuq\x06K\x04") == 1
    file.write_bytes(content.replace(b"cpuq\x06K\x04", b"cpuq\x06" + claim))


def safetensors_claim(file):
    header = b'{"fc.bias": {"dtype": "F32", "shape": [68719476736], "data_offsets": [0, 274877906944]}}'
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))


def document(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")


def scripted(file):
    torch.jit.save(torch.jit.trace(ORIGIN, torch.randn(1, 3, 8, 8)), file)


def one(key, change):
    return saved(with_one(key, change(STATE[key])))


def with_value(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


LIMIT = resource.getrlimit(resource.RLIMIT_AS)
EVIL = "evil"  # the file that hostile content creates if its code runs
VGG = {f"features.{at}.weight": torch.zeros(16, 16, 3, 3) for at in range(8)}
REFUSED = {
    "other number of classes": (saved(model_of(classes=10).state_dict()), "10 classes instead of 4"),
    "other width": (saved(model_of(widths=[16, 16, 32, 48]).state_dict()), "another width or kernel, layer3.0.conv1"),
    "other depth": (saved(model_of(depth=14).state_dict()), "15 convolutions instead of 9, layer1.1.conv1"),
    "option A": (
        saved({key: value for key, value in KUANGLIU.items() if "shortcut" not in key}),
        "shortcuts without weights (option A), layer2.0.downsample.0.weight is missing",
    ),
    "a layer missing": (saved({k: v for k, v in STATE.items() if k != "bn1.bias"}), ": bn1.bias is missing"),
    "one more layer": (saved({**STATE, "normalise.mean": torch.zeros(3)}), ": normalise.mean is unknown"),
    "another family": (saved(VGG), "8 convolutions instead of 9"),
    "teacher and student": (
        saved({"teacher": STATE, "student": model_of(seed=4).state_dict()}),
        "several sets of weights fit",
    ),
    "a name twice": (saved({**STATE, "module.fc.bias": STATE["fc.bias"]}), "fc.bias and module.fc.bias are both"),
    "an alias twice": (saved({**STATE, "linear.bias": STATE["fc.bias"]}), "two of its weights are fc.bias"),
    "a name that clears the screen": (saved({**STATE, "\x1b[2J": torch.zeros(3)}), "control characters: '\\x1b[2J'"),
    "a name of two lines": (saved({"a\nb": STATE}), "control characters: 'a\\nb.conv1.weight'"),
    "an object of a name that clears the screen": (
        lambda file: file.write_bytes(b"\x80\x02cos\n\x1b[2J\n)R."),
        "a pickle of more than tensors",
    ),
    "a pickled object": (saved({**STATE, "extra": Touch(Path(EVIL))}), "a pickle of more than tensors (posix.system)"),
    "an object in options": (saved({"opt": argparse.Namespace(x=Touch(Path(EVIL))), "model": STATE}), "posix.system"),
    "a pickled object, legacy": (
        saved({"model": STATE, "x": Touch(Path(EVIL))}, _use_new_zipfile_serialization=False),
        "posix.system",
    ),
    "a plain pickle": (lambda file: file.write_bytes(pickle.dumps(Touch(Path(EVIL)))), "refused: a pickle"),
    "eval": (saved(Call(eval, f"open({EVIL!r}, 'w')")), "eval"),
    "a whole module": (saved(ORIGIN), "kdflow.models.families.resnet.ResNet"),
    "an array of numpy": (saved({"model": STATE, "curve": np.ones(3)}), "numpy._core.multiarray._reconstruct"),
    "a number of numpy for a weight": (saved({**STATE, "fc.bias": np.float32(1)}), "fc.bias is missing"),
    "TorchScript": (scripted, "TorchScript"),
    "no file": (lambda file: None, "no such file"),
    "an empty file": (lambda file: file.touch(), "is empty"),
    "a folder": (lambda file: file.mkdir(), "is a folder"),
    "a pipe": (os.mkfifo, "is a pipe or a device"),
    "a device": (lambda file: file.symlink_to("/dev/zero"), "is a pipe or a device"),
    "a loop of links": (lambda file: file.symlink_to(file), "leads back to itself"),
    "a web page": (lambda file: file.write_text("<html>404</html>\n" * 20), "is a web page, not the file"),
    "half an archive": (repacked(share=0.5), "a damaged archive"),
    "compressed": (repacked(zipfile.ZIP_DEFLATED), "torch.save does not compress"),
    "a bomb": (bomb, "that unpacks to 100,00"),
    "two entries of one name": (repacked(again=True), "two entries of one name"),
    "another archive": (document, "neither safetensors nor a whole torch file"),
    "half of safetensors": (
        lambda file: file.write_bytes(safetensors.torch.save(STATE)[:9000]),
        "a damaged safetensors file",
    ),
    "a claim of safetensors": (safetensors_claim, "a damaged safetensors file"),
    "a claim of an old file": (legacy_claim, "needs far more memory"),
    "a claim of a tensor": (saved(Call(torch.Tensor, 30_000, 30_000)), "needs far more memory"),
    "a claim of bytes": (saved({"x": Call(bytearray, 3 * 10**9)}), "needs far more memory"),
    "NaN": (one("fc.weight", with_value(float("nan"))), "fc.weight has NaN or infinity in 1 of its 128 values"),
    "infinity": (one("layer1.0.bn1.running_var", with_value(float("inf"))), "layer1.0.bn1.running_var has NaN or inf"),
    "too large": (one("fc.bias", lambda t: t.double() + 1e300), "fc.bias has NaN or infinity in 4 of"),
    "complex": (one("fc.bias", lambda t: t.to(torch.complex64)), "fc.bias is complex64"),
    "whole numbers": (one("fc.weight", lambda t: t.to(torch.int8)), "fc.weight is int8"),
    "sparse": (one("fc.weight", lambda t: t.to_sparse()), "fc.weight is a sparse tensor"),
    "without values": (one("fc.weight", lambda t: t.to("meta")), "fc.weight has a shape but no values"),
    "expanded": (one("fc.weight", lambda t: torch.zeros(1).expand(10**7, 10**7)), "but its storage is smaller"),
    "a list": (saved([torch.zeros(4)]), "expected a state dict of tensors, found list"),
    "nothing in it": (saved({}), "found an empty dict"),
    "no weights in it": (saved({"epoch": 3}), "found a dict of 'epoch'"),
}


def memory(kind):
    return int(re.search(rf"Vm{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.filterwarnings("ignore")  # torch.jit's, zipfile's
@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_or_hostile_checkpoint_is_refused_with_the_reason(name, tmp_path, monkeypatch):
    write, reason = REFUSED[name]
    monkeypatch.chdir(tmp_path)  # where hostile content would create its file
    file = tmp_path / "w"
    write(file)
    model = model_of(seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before_load = memory("RSS")
    with pytest.raises(UserError) as caught:
        convert_weights.load_any_format(model, file)
    assert memory("HWM") - before_load < 64, "MB"
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert reason in message
    assert message.isprintable()
    assert len(message) < len(str(file)) + 400
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not (tmp_path / EVIL).exists()
    assert resource.getrlimit(resource.RLIMIT_AS) == LIMIT


@pytest.mark.parametrize("content", [Touch(Path(EVIL)), Call(eval, f"open({EVIL!r}, 'w')")])
def test_hostile_content_runs_in_a_plain_unpickler(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(content))
    assert (tmp_path / EVIL).exists()


def test_a_quantised_tensor_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="deprecated"):
        quantised = torch.quantize_per_tensor(STATE["fc.weight"], 0.1, 0, torch.qint8)
        torch.save(with_one("fc.weight", quantised), tmp_path / "w")
    with pytest.raises(UserError, match=r"fc\.weight is quantised"):
        convert_weights.load_any_format(model_of(seed=1), tmp_path / "w")
