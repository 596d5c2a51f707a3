"""Mistakes in params.yaml and recipes/: each is refused in one line that names file and field."""

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paths import ROOT
from settings_files import DATASETS, GONE, METHODS, MODELS, PAIRS, edit

from kdflow import config
from kdflow.core.errors import UserError


def refused(root):
    with pytest.raises(UserError) as caught:
        config.load(root)
    return str(caught.value).split("\n")


PAIR, TOP1 = "resnet56_to_resnet20", {"teacher_top1": 72.34, "student_top1": 69.06}
FULL = {"file": "w.pt", "sha256": "0" * 64, "top1": 70.0}
BAD = {
    # id: file, changes, the field that is named, a word that must be there
    "unknown key": ("params.yaml", {"epocs": 3}, "epocs", "unknown key; did you mean 'epochs'?"),
    "unknown key, nothing close": ("params.yaml", {"zzz": 3}, "zzz", "unknown key; allowed: "),
    "unknown nested key": ("params.yaml", {"compute/devise": "cpu"}, "compute.devise", "did you mean 'device'?"),
    "missing key": ("params.yaml", {"seeds": GONE}, "seeds", "required"),
    "missing nested key": ("params.yaml", {"compute/threads": GONE}, "compute.threads", "required"),
    "a graph of cached logits": (
        "params.yaml",
        {"precision/step": "compile", "teacher_logits": "replay"},
        "precision.step",
        "compile needs teacher_logits: online",
    ),
    "a CUDA graph on a CPU": (
        "params.yaml",
        {"precision/step": "cuda_graph", "compute/device": "cpu"},
        "precision.step",
        "needs a CUDA device",
    ),
    "epochs as text": ("params.yaml", {"epochs": "240"}, "epochs", "'240'"),
    "epochs as fraction": ("params.yaml", {"epochs": 2.5}, "epochs", "2.5"),
    "epochs as truth": ("params.yaml", {"epochs": True}, "epochs", "True"),
    "epochs negative": ("params.yaml", {"epochs": -1}, "epochs", "-1"),
    "epochs zero": ("params.yaml", {"epochs": 0}, "epochs", "greater than 0"),
    "epochs a list": ("params.yaml", {"epochs": [1]}, "epochs", "[1]"),
    "teacher_epochs zero": ("params.yaml", {"teacher_epochs": 0}, "teacher_epochs", "greater than 0"),
    "batch_size zero": ("params.yaml", {"batch_size": 0}, "batch_size", "greater than 0"),
    "lr zero": ("params.yaml", {"lr": 0}, "lr", "greater than 0"),
    "lr text": ("params.yaml", {"lr": "fast"}, "lr", "'fast'"),
    "lr not a number": ("params.yaml", {"lr": math.nan}, "lr", "nan"),
    "lr infinite": ("params.yaml", {"lr": math.inf}, "lr", "inf"),
    "train_images zero": ("params.yaml", {"train_images": 0}, "train_images", "greater than 0"),
    "train_images too many": ("params.yaml", {"train_images": 301}, "train_images", "more than digits has, 300"),
    "dataset unknown": ("params.yaml", {"dataset": "digit"}, "dataset", "did you mean 'digits'?"),
    "dataset null": ("params.yaml", {"dataset": None}, "dataset", "None"),
    "teacher unknown": ("params.yaml", {"teacher": "resnt20"}, "teacher", "did you mean 'resnet20'?"),
    "student unknown": ("params.yaml", {"student": "resnet8x"}, "student", "did you mean 'resnet8x4'?"),
    "method unknown": ("params.yaml", {"methods": ["ce", "kdd"]}, "methods.1", "did you mean 'kd'?"),
    "methods none": ("params.yaml", {"methods": []}, "methods", "at least 1"),
    "methods a word": ("params.yaml", {"methods": "kd"}, "methods", "'kd'"),
    "methods twice": ("params.yaml", {"methods": ["kd", "ce", "kd"]}, "methods", "duplicate entries: kd"),
    "seeds none": ("params.yaml", {"seeds": []}, "seeds", "at least 1"),
    "seeds twice": ("params.yaml", {"seeds": [1, 0, 1]}, "seeds", "duplicate entries: 1"),
    "seed negative": ("params.yaml", {"seeds": [0, -1]}, "seeds.1", "-1"),
    "seed beyond 32 bits": ("params.yaml", {"seeds": [2**32]}, "seeds.0", "4294967296"),
    "seed a fraction": ("params.yaml", {"seeds": [0.5]}, "seeds.0", "0.5"),
    "logits unknown": ("params.yaml", {"teacher_logits": "stored"}, "teacher_logits", "'online'"),
    "weights without hash": ("params.yaml", {"teacher_weights": {**FULL, "sha256": None}}, "teacher_weights", "sha256"),
    "weights without top1": ("params.yaml", {"teacher_weights": {**FULL, "top1": None}}, "teacher_weights", "top1"),
    "weights without file": ("params.yaml", {"teacher_weights": {**FULL, "file": None}}, "teacher_weights", "file"),
    "weights null": ("params.yaml", {"teacher_weights": None}, "teacher_weights", "None"),
    "sha256 short": ("params.yaml", {"teacher_weights": {**FULL, "sha256": "ab"}}, "teacher_weights.sha256", "'ab'"),
    "sha256 capital": ("params.yaml", {"teacher_weights": {**FULL, "sha256": "A" * 64}}, "teacher_weights.sha256", "A"),
    "top1 above 100": ("params.yaml", {"teacher_weights": {**FULL, "top1": 101.0}}, "teacher_weights.top1", "100"),
    "device": ("params.yaml", {"compute/device": "gpu"}, "compute.device", "'gpu'"),
    "threads zero": ("params.yaml", {"compute/threads": 0}, "compute.threads", "greater than 0"),
    "processes none": (
        "params.yaml",
        {"compute/processes_per_run": None},
        "compute.processes_per_run",
        "valid integer",
    ),
    "compute a word": ("params.yaml", {"compute": "cpu"}, "compute", "'cpu'"),
    "family unknown": (MODELS, {"resnet8/family": "resnets"}, "resnet8.family", "did you mean 'resnet'?"),
    "model without family": (MODELS, {"resnet8/family": GONE}, "resnet8.family", "required"),
    "model's lr zero": (MODELS, {"resnet8/lr": 0}, "resnet8.lr", "greater than 0"),
    "model null": (MODELS, {"resnet8": None}, "resnet8", "None"),
    "options a list": (MODELS, {"resnet8/options": [8]}, "resnet8.options", "[8]"),
    "model name with a dot": (MODELS, {"resnet8.4": {"family": "resnet"}}, "'resnet8.4'", "lower-case"),
    "model name with a capital": (MODELS, {"ResNet8": {"family": "resnet"}}, "'ResNet8'", "lower-case"),
    "model name a number": (MODELS, {8: {"family": "resnet"}}, "8", "lower-case"),
    "reader unknown": (DATASETS, {"digits/data/reader": "digit"}, "digits.data.reader", "did you mean 'digits'?"),
    "md5": (DATASETS, {"cifar100/data/md5": "beef"}, "cifar100.data.md5", "'beef'"),
    "one class": (DATASETS, {"digits/data/classes": 1}, "digits.data.classes", "1"),
    "unknown key of views": (DATASETS, {"digits/base_view/krop": 1}, "digits.base_view.krop", "did you mean 'crop'?"),
    "flip not a truth": (DATASETS, {"digits/base_view/flip": "off"}, "digits.base_view.flip", "'off'"),
    "two means": (DATASETS, {"digits/base_view/mean": [0.5, 0.5]}, "digits.base_view.mean", ""),
    "mean no number": (DATASETS, {"digits/base_view/mean": [0.5, 0.5, math.nan]}, "digits.base_view.mean", "nan"),
    "std zero": (DATASETS, {"digits/base_view/std": [0.5, 0.0, 0.5]}, "digits.base_view.std.1", "or equal to 0.000001"),
    "two crops": (
        DATASETS,
        {"imagenet/base_view/crop": 4},
        "imagenet.base_view",
        "crop: must be 0 beside resize, got 4",
    ),
    "area reversed": (
        DATASETS,
        {"imagenet/base_view/resize/area": [1, 0.08]},
        "imagenet.base_view.resize",
        "smaller fraction",
    ),
    "area of nothing": (
        DATASETS,
        {"imagenet/base_view/resize/area": [0, 1]},
        "imagenet.base_view.resize.area.0",
        "than 0",
    ),
    "resized to less": (
        DATASETS,
        {"imagenet/base_view/resize/side": 200},
        "imagenet",
        "200 is less than data.image_size",
    ),
    "unknown key of resize": (
        DATASETS,
        {"imagenet/base_view/resize/sise": 1},
        "imagenet.base_view.resize.sise",
        "'side'?",
    ),
    "workers below zero": (
        "params.yaml",
        {"compute/loader_workers": -1},
        "compute.loader_workers",
        "greater than or equal to 0",
    ),
    "decay after the end": (
        DATASETS,
        {"digits/training/lr_milestones": [1.5]},
        "digits.training.lr_milestones.0",
        "1.5",
    ),
    "decay at 1": (DATASETS, {"digits/training/lr_milestones": [0.5, 1.0]}, "digits.training.lr_milestones.1", "1.0"),
    "decay at 0": (DATASETS, {"digits/training/lr_milestones": [0.0]}, "digits.training.lr_milestones.0", "0.0"),
    "decay twice": (
        DATASETS,
        {"digits/training/lr_milestones": [0.5, 0.5]},
        "digits.training.lr_milestones",
        "duplicate entries: 0.5",
    ),
    "momentum 1": (DATASETS, {"digits/training/momentum": 1.0}, "digits.training.momentum", "1.0"),
    "eval_every 0": (DATASETS, {"digits/training/eval_every": 0}, "digits.training.eval_every", "greater than 0"),
    "reader without views": (DATASETS, {"digits/base_view": GONE}, "digits", "base_view must be given too"),
    "reader without all": (
        DATASETS,
        {"digits/base_view": GONE, "digits/training": GONE},
        "digits",
        "base_view and training must be given too",
    ),
    "teacher of a pair": (PAIRS, {f"{PAIR}/teacher": "resnt56"}, f"{PAIR}.teacher", "did you mean 'resnet56'?"),
    "student of a pair": (PAIRS, {f"{PAIR}/student": "resnt20"}, f"{PAIR}.student", "did you mean 'resnet20'?"),
    "dataset of a pair": (PAIRS, {f"{PAIR}/datasets/cifar10": TOP1}, f"{PAIR}.datasets", "did you mean 'cifar100'?"),
    "pair of no dataset": (PAIRS, {f"{PAIR}/datasets": {}}, f"{PAIR}.datasets", "at least 1"),
    "pair's share": (PAIRS, {f"{PAIR}/datasets/cifar100/student_top1": 101.0}, f"{PAIR}.datasets.cifar100", "101.0"),
    "no loss": (METHODS, {"kd/ce": 0.0, "kd/kl": 0.0}, "kd", "both 0"),
    "strong view without kl": (METHODS, {"kd_tlcutmix/kl": 0.0}, "kd_tlcutmix", "kl"),
    "tau 0": (METHODS, {"kd/tau": 0.0}, "kd.tau", "or equal to 0.01"),
    "ce negative": (METHODS, {"kd/ce": -0.1}, "kd.ce", "-0.1"),
    "mix unknown": (METHODS, {"kd_tlcutmix/strong/view": "cutmx"}, "kd_tlcutmix.strong.view", "did you mean 'cutmix'?"),
    "pick unknown": (
        METHODS,
        {"kd_tlcutmix/strong/pick": {"criterion": "ce"}},
        "kd_tlcutmix.strong.pick.criterion",
        "allowed: kl",
    ),
    "pick of nothing": (
        METHODS,
        {"kd_tlcutmix/strong/pick": {"criterion": "kl", "keep": 1.0}},
        "kd_tlcutmix.strong.pick.keep",
        "less than 1",
    ),
    "pick of one draw": (
        METHODS,
        {"kd_tlcutmix/strong/pick": {"criterion": "kl", "pool": 1}},
        "kd_tlcutmix.strong.pick.pool",
        "equal to 2",
    ),
    "pick of identity": (
        METHODS,
        {"kd_identity/strong/pick": {"criterion": "kl"}},
        "kd_identity.strong",
        "are the same",
    ),
    "label unknown": (METHODS, {"kd_cutmix/strong/label": "mixd"}, "kd_cutmix.strong.label", "did you mean 'mixed'?"),
    "loss unknown": (METHODS, {"at/loss/name": "att"}, "at.loss.name", "did you mean 'at'?"),
    "loss without weight": (METHODS, {"at/loss/weight": 0.0}, "at.loss.weight", "greater than 0"),
    "loss of an x that is left out": (METHODS, {"at_kd_tlcutmix/strong/replaces_x": True}, "at_kd_tlcutmix", "needs x"),
    "base view unknown": ("params.yaml", {"base_view": "crop"}, "base_view", "'none', 'flip' or 'flip+crop'"),
    "unknown key of strong": (
        METHODS,
        {"kd_tlcutmix/strong/viewx": 1},
        "kd_tlcutmix.strong.viewx",
        "did you mean 'view'?",
    ),
    "method name with a slash": (METHODS, {"kd": GONE, "kd@4": {"ce": 0.1, "kl": 0.9}}, "'kd@4'", "lower-case"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line_that_names_file_and_field(root, name):
    file, changes, field, word = BAD[name]
    edit(root, file, changes)
    lines = refused(root)
    assert len(lines) == 1, lines
    assert lines[0].startswith((f"{root / file}: {field}:", f"{root / file}: {field} ", f"{root / file}: {field}."))
    assert word in lines[0]


CONTENT = {
    "broken": (b"epochs: [1, 2\nlr: }", "not YAML"),
    "a list": (b"- epochs\n- lr\n", "list"),
    "a word": (b"epochs\n", "str"),
    "latin-1": ("dataset: caf\u00e9\n".encode("latin-1"), ""),
    "a null byte": (b"dataset: a\x00b\n", ""),
    "a key twice": (b"a: 1\na: 2\n", "duplicate key"),
    "a tab": (b"a:\n\tb: 1\n", "not YAML"),
    "a python object": (b"a: !!python/object/apply:os.getcwd []\n", "not YAML"),
    "two documents": (b"a: 1\n---\nb: 2\n", "not YAML"),
}


@pytest.mark.parametrize("file", ["params.yaml", DATASETS, MODELS, METHODS, PAIRS])
@pytest.mark.parametrize("name", CONTENT)
def test_a_file_that_is_no_mapping_is_one_line(root, file, name):
    content, word = CONTENT[name]
    (root / file).write_bytes(content)
    lines = refused(root)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{root / file}: ")
    assert word in lines[0]


def test_several_mistakes_of_a_file_give_several_lines(root):
    edit(root, "params.yaml", {"epochs": "240", "lr": 0, "compute/device": "gpu", "epocs": 1})
    lines = refused(root)
    assert all(line.startswith(f"{root / 'params.yaml'}: ") for line in lines)
    assert sorted(line.split(": ")[1] for line in lines) == ["compute.device", "epochs", "epocs", "lr"]


def test_several_unknown_names_give_several_lines(root):
    edit(root, "params.yaml", {"dataset": "a", "teacher": "b", "student": "c", "methods": ["d", "kd", "e"]})
    fields = [line.split(": ")[1] for line in refused(root)]
    assert fields == ["dataset", "teacher", "student", "methods.0", "methods.2"]


def test_mistakes_of_several_entries_give_several_lines(root):
    edit(root, MODELS, {"resnet8/family": "x", "resnet20/lr": -1})
    assert sorted(line.split(": ")[1] for line in refused(root)) == ["resnet20.lr", "resnet8.family"]


def test_mistakes_of_several_files_give_several_lines(root):
    edit(root, MODELS, {"resnet8/family": "x"})
    edit(root, METHODS, {"kd/tau": 0})
    edit(root, "params.yaml", {"epochs": -1})
    named = {tuple(line.removeprefix(f"{root}/").split(": ")[:2]) for line in refused(root)}
    assert named == {(MODELS, "resnet8.family"), (METHODS, "kd.tau"), ("params.yaml", "epochs")}


def test_all_three_of_the_teacher_s_weights_are_taken(root):
    edit(root, "params.yaml", {"teacher_weights": FULL})
    assert config.load(root).params.teacher_weights.file == "w.pt"


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices_are_taken(root, device):
    edit(root, "params.yaml", {"compute/device": device})
    assert config.load(root).params.compute.device == device


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["kd", "resnet8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


QUOTED = config.PaperAccuracy(teacher_top1=98.0, student_top1=97.0)


def one_of_each():
    """Return the entries that params.yaml names, without the other recipes, which take longer to read."""
    experiment = config.load(ROOT)
    params = experiment.params.model_copy(update={"methods": ("kd",), "teacher": "resnet8"})
    entries = ((DATASETS, experiment.datasets, "digits"), (MODELS, experiment.models, "resnet8"))
    pairs = {"pair": config.Pair(teacher="resnet8", student="resnet8", datasets={"digits": QUOTED})}
    entries += ((METHODS, experiment.methods, "kd"), (PAIRS, pairs, "pair"))
    small = {file: {name: found[name].model_dump(mode="json")} for file, found, name in entries}
    user_folder = {"recipes/user_folder.yaml": experiment.user_folder.model_dump(mode="json")}
    return {"params.yaml": params.model_dump(mode="json"), **small, **user_folder}


SMALL = one_of_each()


@example(key="methods", value=["\U00010000"] * 2)  # JSON writes two halves of a character
@given(
    key=st.sampled_from(["epochs", "methods", "compute", "teacher_weights", "seeds", "dataset", "new"]), value=VALUES
)
@settings(max_examples=40, deadline=None)
def test_any_value_is_either_taken_or_refused_in_lines(key, value):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "recipes").mkdir()
        for file, content in SMALL.items():
            changes = {key: value} if file == "params.yaml" else {}
            (root / file).write_text(json.dumps({**content, **changes}), "utf-8")  # JSON is YAML
        try:
            config.load(root)
        except UserError as error:
            assert all(line.startswith(f"{root / 'params.yaml'}: ") for line in str(error).split("\n"))
