"""Names of initial weights: their file, hash, normalisation and size; downloads come from a local server."""

import hashlib
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from paths import ROOT
from settings_files import copy_settings, edit
from web import serving

from kdflow import config
from kdflow.config import InitialFile
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.models import create_model, save_weights
from kdflow.teachers.initial_weights import fetch, find, with_initial_weights

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    recipe = config.load_recipes(ROOT).models["resnet8"]
    sha256 = save_weights(create_model("resnet8", recipe, 10, 16), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors", sha256


def test_weights_of_torchvision_have_a_hash_and_their_normalisation(tmp_path):
    found = find("student_init", "ResNet18_Weights.DEFAULT", tmp_path)
    assert found.weights.source == "torchvision ResNet18_Weights.IMAGENET1K_V1"
    assert found.weights.sha256 == "f37072fd"
    assert (found.mean, found.std) == IMAGENET and found.image_size == 224
    assert found.file.endswith(".kdflow/teachers/resnet18-f37072fd.pth")


def test_a_teacher_of_the_registry_has_the_normalisation_of_its_dataset(tmp_path):
    copy_settings(tmp_path)
    found, view = find("teacher_init", "cifar100_resnet56", tmp_path), config.load_recipes(ROOT).datasets["cifar100"]
    assert (found.mean, found.std) == (view.base_view.mean, view.base_view.std) and found.image_size == 32
    file = tmp_path / "resnet56.pt"
    by_hash = find("teacher_init", InitialFile(file=str(file), sha256=found.weights.sha256), tmp_path)
    assert (by_hash.mean, by_hash.image_size, by_hash.weights.source) == (found.mean, 32, "file resnet56.pt")


def test_weights_of_timm_are_those_of_its_registry(tmp_path, monkeypatch):
    settings = SimpleNamespace(
        url="", hf_hub_id="timm/resnet18.a1_in1k", mean=IMAGENET[0], std=IMAGENET[1], input_size=(3, 224, 224)
    )
    timm = ModuleType("timm")
    timm.list_pretrained = lambda pattern="": ["resnet18.a1_in1k"]
    timm.get_pretrained_cfg = lambda name: settings
    monkeypatch.setitem(sys.modules, "timm", timm)
    timm.__spec__ = SimpleNamespace()
    found = find("student_init", "timm:resnet18.a1_in1k", tmp_path)
    assert found.urls == ("https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors",)
    assert (found.mean, found.std) == IMAGENET and found.weights.sha256 == ""
    cached = tmp_path / "hub/models--timm--resnet18.a1_in1k/snapshots/abc/model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert fetch(found) == cached


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar100_resnet65", "did you mean 'cifar100_resnet56'?"),
        ("ResNet18_Weights.V7", "torchvision has no weights 'ResNet18_Weights.V7'"),
        ("ResNet19_Weights.DEFAULT", "torchvision has no weights 'ResNet19_Weights.DEFAULT'"),
    ],
)
def test_unknown_names_are_one_line(tmp_path, name, words):
    with pytest.raises(UserError) as caught:
        find("student_init", name, copy_settings(tmp_path))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_missing_timm_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="student_init: timm is not installed"):
        find("student_init", "timm:resnet18.a1_in1k", tmp_path)


def test_a_download_is_checked_and_a_file_that_is_there_is_not_downloaded_again(tmp_path, weights):
    file, sha256 = weights
    found = find("student_init", "ResNet18_Weights.DEFAULT", tmp_path)
    with serving(tmp_path) as address:
        known = found.weights.model_copy(update={"sha256": sha256[:8]})
        found = found.model_copy(update={"urls": (f"{address}/{file.name}",), "size": 10**7, "weights": known})
        assert files.sha256(fetch(found)) == sha256
        wrong = found.model_copy(update={"weights": known.model_copy(update={"sha256": "0" * 8})})
        with pytest.raises(UserError, match="expected 00000000: deleted"):
            fetch(wrong)
    assert str(fetch(found)) == found.file, "the server is gone"


def test_a_download_of_torch_is_used(tmp_path, weights, monkeypatch):
    file, sha256 = weights
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cached = tmp_path / "torch/hub/checkpoints/w-abc.pth"
    cached.parent.mkdir(parents=True)
    shutil.copy(file, cached)
    found = find("student_init", "ResNet18_Weights.DEFAULT", tmp_path)
    known = found.weights.model_copy(update={"sha256": sha256})
    assert fetch(found.model_copy(update={"urls": ("http://127.0.0.1:9/w-abc.pth",), "weights": known})) == cached


def test_a_file_needs_its_hash(tmp_path, weights):
    file, sha256 = weights
    found = find("student_init", InitialFile(file=file.name, sha256=sha256), copy_settings(tmp_path))
    assert fetch(found) == file and found.mean is None
    file.write_bytes(b"other")
    with pytest.raises(UserError, match=f"sha256 is {hashlib.sha256(b'other').hexdigest()}, expected {sha256}"):
        fetch(found)
    file.unlink()
    with pytest.raises(UserError, match="no such file"):
        fetch(found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"teacher_init": "cifar100_resnet56", "teacher_weights": {"file": "a", "sha256": "0" * 64, "top1": 9.0}},
            "teacher_init: is for a teacher that is trained",
        ),
        ({"training": {"freeze_backbone": 2}}, "training.freeze_backbone: needs student_init"),
        ({"teacher_training": {"freeze_backbone": 2}}, "teacher_training.freeze_backbone: needs teacher_init"),
        ({"student_init": {"file": "a"}}, "student_init.sha256: Field required"),
        ({"student_init": {"file": "a", "sha256": "0" * 64, "mean": [0.1] * 3}}, "mean and std must be given together"),
        ({"student_init": 3}, "student_init: input should be a valid string"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, changes, words):
    edit(copy_settings(tmp_path), "params.yaml", changes)
    with pytest.raises(UserError) as caught:
        config.load(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_each_model_has_the_normalisation_of_its_weights(tmp_path, weights):
    file, sha256 = weights
    given = {"file": str(file), "sha256": sha256, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    edit(copy_settings(tmp_path), "params.yaml", {"student_init": given, "teacher_init": "cifar100_resnet56"})
    loaded = config.load(tmp_path)
    found = with_initial_weights(loaded, tmp_path)
    cifar100, digits = (loaded.datasets[name].base_view for name in ("cifar100", "digits"))
    student, teacher = found.student_run("kd", 0), found.teacher_run()
    assert (student.base_view.mean, student.base_view.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (student.teacher.mean, student.teacher.std) == (cifar100.mean, cifar100.std)
    assert (teacher.base_view.mean, teacher.base_view.std) == (cifar100.mean, cifar100.std)
    assert student.initial.source == "file w.safetensors" and student.initial.sha256 == sha256
    assert str(tmp_path) not in student.model_dump_json(), "where the file is changes no hash"
    plain = loaded.model_copy(update={"params": loaded.params.model_copy(update={"student_init": None})})
    assert plain.student_run("kd", 0).base_view == digits and plain.student_run("kd", 0).teacher.mean is None
