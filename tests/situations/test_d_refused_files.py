"""Files that are refused as weights: the message names what they are and how to get the weights out of them."""

import datetime
import fcntl
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import LOGITS, ORIGIN, STATE, logits_of, model_of
from paths import ROOT
from small import images

from kdflow import config, data
from kdflow.core.errors import UserError
from kdflow.data import Split, Splits
from kdflow.models import convert_weights, safe_weights
from kdflow.pipeline import distill_options


def exported(file):
    program = torch.export.export(ORIGIN, (torch.randn(2, 3, 8, 8),))
    torch.export.save(program, file.with_suffix(".pt2"))
    file.with_suffix(".pt2").rename(file)


def scripted(file):
    torch.jit.save(torch.jit.trace(ORIGIN, torch.randn(1, 3, 8, 8)), file)


def saved(content):
    return lambda file: torch.save(content, file)


@pytest.mark.filterwarnings("ignore")  # torch.jit's
@pytest.mark.parametrize(
    ("write", "name"),
    [
        (saved(ORIGIN), "kdflow.models.families.resnet.ResNet"),
        (saved({"state_dict": STATE, "curve": np.ones(3)}), "numpy._core.multiarray._reconstruct"),
        (saved({"state_dict": STATE, "file": Path("x")}), "pathlib"),
        (saved({"state_dict": STATE, "date": datetime.datetime(2026, 1, 1)}), "datetime.datetime"),
        (scripted, "TorchScript"),
        (exported, "a program of torch.export"),
    ],
)
def test_the_two_lines_of_the_message_save_the_weights(write, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("it's"))
    with pytest.raises(UserError, match="If you trust it, save its state dict: ") as caught:
        convert_weights.load_any_format(model_of(seed=1), Path("it's"))
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    lines = re.findall("`(.*?)`", message)
    assert len(lines) == 2
    if "['state_dict']" in message and not name.endswith("ResNet"):
        lines[1] = lines[1].replace("x.state_dict()", "x['state_dict']")
    exec("\n".join(lines), {"torch": torch})
    model = model_of(seed=1)
    convert_weights.load_any_format(model, Path("new.pt"))
    assert torch.equal(logits_of(model), LOGITS)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x08\n\x12\x07pytorch\x1a\x0c2.14.1", "is an ONNX graph; give the PyTorch checkpoint of this model"),
        (b"\x08\x07:\xf2\x22\n\xbb" + bytes(90), "is an ONNX graph"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><title>404</title>", "is a web page"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(content, kind, tmp_path):
    file = tmp_path / "teacher.any"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"teacher.any: {kind}"):
        safe_weights.read(file)
    options = distill_options.DistillOptions.model_construct(
        teacher=str(file), out=tmp_path / "out", teacher_model=None
    )
    with pytest.raises(UserError, match=f"teacher.any: {kind}"):
        distill_options._teacher(options, config.load_recipes(ROOT))


def test_arrays_of_numpy_are_called_what_they_are(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    with pytest.raises(UserError, match=r"w.npz: is a file of NumPy arrays; save them as a dict of tensors"):
        safe_weights.read(tmp_path / "w.npz")


@pytest.mark.parametrize(
    "error", [BlockingIOError(11, "Resource temporarily unavailable"), PermissionError(13, "Denied")]
)
def test_a_file_that_another_program_holds_is_not_called_damaged(tmp_path, monkeypatch, error):
    torch.save(STATE, tmp_path / "w")

    def load(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UserError, match=f"w: {error.strerror}$"):
        safe_weights.read(tmp_path / "w")


def test_a_dataset_that_another_process_has_locked_is_read(tmp_path):
    """HDF5 locks files that it opens, and other programs have them open."""
    file, train = tmp_path / "data.h5", images(8, 0)
    split = Split(train.images.permute(0, 2, 3, 1).numpy(), train.labels.numpy())
    data.write("data", 8, Splits(split, split, ["a", "b", "c", "d"]), file)
    script = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        with file.open("rb") as raw, pytest.raises(BlockingIOError):
            fcntl.flock(raw, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert len(data.load(file, 8, torch.device("cpu")).train) == 8
        assert data.class_names(file) == ["a", "b", "c", "d"]
        assert data.largest_class(file) == 25.0
        other.stdin.close()
