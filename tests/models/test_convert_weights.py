"""Checkpoints as others publish them, and as an attacker would: loaded to the digit, or refused with the reason."""

import argparse
import os
import pickle
import re
import resource
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hostile import Call, Touch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT
from torch import nn
from torch.nn import functional as F

from kdflow import config
from kdflow.config import Model
from kdflow.core.errors import UserError
from kdflow.models import convert_weights, create_model

SMALL = Model(family="resnet", options={"depth": 8, "widths": [16, 16, 32, 32]})
CLASSES = 4


def model_of(recipe=SMALL, classes=CLASSES, seed=0, **options):
    """A model whose running statistics are not the initial ones."""
    torch.manual_seed(seed)
    recipe = recipe.model_copy(update={"options": {**recipe.options, **options}})
    model = create_model("small", recipe, classes, 8)
    for name, value in model.state_dict().items():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    return model.eval()


def said(model):
    torch.manual_seed(7)
    with torch.no_grad():
        return model.eval()(torch.randn(4, 3, 8, 8))


ORIGIN = model_of()
STATE = ORIGIN.state_dict()
SAID = said(ORIGIN)
ALL, FLOATS = len(STATE), sum(value.is_floating_point() for value in STATE.values())


def renamed(*rules, state=STATE):
    """The state with other names: pairs of pattern and replacement."""
    names = {key: key for key in state}
    for pattern, replacement in rules:
        names = {key: re.sub(pattern, replacement, name) for key, name in names.items()}
    assert len(set(names.values())) == len(names)
    return OrderedDict((names[key], value.clone()) for key, value in state.items())


def cast(dtype):
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in STATE.items()}


def with_one(key, value):
    return {**STATE, key: value}


class Residual(nn.Module):
    """A block as weiaicunzai/pytorch-cifar100 names its layers."""

    def __init__(self, before, after, stride):
        super().__init__()
        first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        norms = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.residual_function = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1])
        self.shortcut = nn.Sequential()
        if before != after or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        return F.relu(self.residual_function(x) + self.shortcut(x))


class Stages(nn.Module):
    """A network of such blocks: the same function as ours, other names, weights of its own."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.conv2_x = nn.Sequential(Residual(16, 16, 1))
        self.conv3_x = nn.Sequential(Residual(16, 32, 2))
        self.conv4_x = nn.Sequential(Residual(32, 32, 2))
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x):
        x = self.conv4_x(self.conv3_x(self.conv2_x(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


torch.manual_seed(3)
STAGES = Stages().eval()
KUANGLIU = renamed((r"^fc\.", "linear."), (r"downsample", "shortcut"))
PYTORCHCV = renamed(
    (r"^(conv|bn)1\.", r"features.init_block.\1."),
    (r"^layer(\d)\.0\.(conv|bn)(\d)\.", r"features.stage\1.unit1.body.conv\3.\2."),
    (r"^layer(\d)\.0\.downsample\.0\.", r"features.stage\1.unit1.identity_conv.conv."),
    (r"^layer(\d)\.0\.downsample\.1\.", r"features.stage\1.unit1.identity_conv.bn."),
    (r"^fc\.", "output."),
)
OPENMM = renamed((r"^(?!fc)", "backbone."), (r"^fc\.", "head.fc."))
DXY = renamed(
    (r"^conv1\.", "conv_1_3x3."),
    (r"^bn1\.", "bn_1."),
    (r"^layer(\d)", r"stage_\1"),
    (r"\.(conv|bn)1\.", r".\1_a."),
    (r"\.(conv|bn)2\.", r".\1_b."),
    (r"^fc\.", "classifier."),
)
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(16, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]}
COUNTS = {"total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)}


def answers_of(state):
    model = model_of(seed=5)
    model.load_state_dict(state)
    return said(model)


# What is in the file, a part of what is said of the mapping, what the loaded model must answer.
LOADED = {
    "as it is": (STATE, "", SAID),
    "DataParallel": (renamed(("^", "module.")), f"'module.' or '_orig_mod.' taken off ({ALL})", SAID),
    "nested": (
        {"epoch": 3, "arch": "r", "state_dict": renamed(("^", "module.")), "optimizer": OPTIMIZER},
        f"'state_dict' taken ({ALL}); 'module.'",
        SAID,
    ),
    "CRD": ({"epoch": 240, "model": STATE, "best_acc": torch.tensor(72.3)}, f"'model' taken ({ALL})", SAID),
    "numbers of numpy": (
        {"model": STATE, "best_acc1": np.float64(72.3), "epoch": np.int64(3), "seen": np.bool_(True)},
        f"'model' taken ({ALL})",
        SAID,
    ),
    "CRD with options": ({"opt": argparse.Namespace(lr=0.1), "model": STATE}, f"'model' taken ({ALL})", SAID),
    "kuangliu": ({"net": KUANGLIU, "acc": 95.1}, "shortcut -> downsample (12); linear -> fc (2)", SAID),
    "weiaicunzai": (STAGES.state_dict(), "convN_x.N.residual_function.N -> layerN.N.convN (6)", said(STAGES)),
    "pytorchcv": (PYTORCHCV, "features.stageN.unitN.body.convN.conv -> layerN.N.convN (6)", SAID),
    "OpenMMLab": ({"meta": {"v": "1"}, "state_dict": OPENMM}, "backbone.convN -> convN (1)", SAID),
    "D-X-Y": (DXY, "stage_N.N.conv_a -> layerN.N.convN (3)", SAID),
    "Lightning": (
        {"state_dict": renamed(("^", "model.")), "hparams": {"lr": 0.1}},
        f"'model.' taken off ({ALL})",
        SAID,
    ),
    "compiled": (renamed(("^", "_orig_mod.module.")), f"'module.' or '_orig_mod.' taken off ({ALL})", SAID),
    "a part DataParallel": (renamed(("^(layer1)", r"\1.module")), "taken off (12)", SAID),
    "averaged": ({"n_averaged": torch.tensor(3), **renamed(("^", "module."))}, "n_averaged left out (1)", SAID),
    "beside an average": (
        {"model": STATE, "model_ema": cast(torch.float64)},
        f"'model_ema' also fits, left ({ALL})",
        SAID,
    ),
    "counted by thop": ({**STATE, **COUNTS}, "total_params left out (1)", SAID),
    "torch 0.4": (
        {k: v for k, v in STATE.items() if "tracked" not in k},
        f"num_batches_tracked set to 0 ({ALL - FLOATS})",
        SAID,
    ),
    "float16": (cast(torch.float16), f"float16 -> float32 ({FLOATS})", answers_of(cast(torch.float16))),
    "bfloat16": (cast(torch.bfloat16), f"bfloat16 -> float32 ({FLOATS})", answers_of(cast(torch.bfloat16))),
    "float64": (cast(torch.float64), f"float64 -> float32 ({FLOATS})", SAID),
    "parameters": ({k: nn.Parameter(v) if v.is_floating_point() else v for k, v in STATE.items()}, "", SAID),
    "channels last": (model_of().to(memory_format=torch.channels_last).state_dict(), "", SAID),
}


TENSORS_ONLY = [
    name for name, row in LOADED.items() if all(isinstance(value, torch.Tensor) for value in row[0].values())
]
FORMS = [(name, form) for name in LOADED for form in ("zip", "legacy")]


@pytest.mark.parametrize(("name", "form"), [*FORMS, *((name, "safetensors") for name in TENSORS_ONLY)])
def test_what_fits_is_loaded_to_the_digit(name, form, tmp_path):
    content, steps, expected = LOADED[name]
    file = tmp_path / "w"
    if form == "safetensors":
        safetensors.torch.save_file({key: value.detach().contiguous() for key, value in content.items()}, file)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    model = model_of(seed=1)
    mapped = convert_weights.load_any_format(model, file)
    assert torch.equal(said(model), expected)
    assert steps in mapped.summary if steps else mapped.summary == ""
    assert {own for _, own in mapped.names} >= {key for key in STATE if "tracked" not in key}


def prefixed(prefix):
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


WRAPPINGS = [prefixed(prefix) for prefix in ("module.", "_orig_mod.", "model.", "net.", "backbone.", "student.")]
RENAMINGS = [(), ((r"^fc\.", "linear."),), (("downsample", "skip"),)]
NESTINGS = [
    lambda state, key=key: {key: state, "epoch": 3} for key in ("state_dict", "model", "net", "student", "whatever")
]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    renaming=st.sampled_from(RENAMINGS),
    wrappings=st.lists(st.sampled_from(WRAPPINGS), max_size=3),
    nestings=st.lists(st.sampled_from(NESTINGS), max_size=2),
)
def test_any_wrappings_of_each_other_come_off(renaming, wrappings, nestings, tmp_path):
    content = renamed(*renaming)
    for change in (*wrappings, *nestings):
        content = change(content)
    torch.save(content, tmp_path / "w")
    model = model_of(seed=1)
    convert_weights.load_any_format(model, tmp_path / "w")
    assert torch.equal(said(model), SAID)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from([key for key in STATE if "tracked" not in key]),
    how=st.sampled_from(["missing", "x", "x.", "cut", "longer"]),
)
def test_one_weight_missing_renamed_or_of_another_shape_is_refused(key, how, tmp_path):
    state = dict(prefixed("module.")(STATE))
    value = state.pop(f"module.{key}")
    if how in ("cut", "longer"):
        state[f"module.{key}"] = value[:-1] if how == "cut" else torch.cat([value, value[:1]])
    elif how != "missing":
        state[f"module.{how}{key}"] = value
    torch.save(state, tmp_path / "w")
    with pytest.raises(UserError, match=f"weights of another architecture: .*({re.escape(key)}|classes instead of 4)"):
        convert_weights.load_any_format(model_of(seed=1), tmp_path / "w")


# --- what is refused ---------------------------------------------------------------------------------------


def saved(content, **options):
    return lambda file: torch.save(content, file, **options)


def repacked(method=zipfile.ZIP_STORED, share=1.0, again=False):
    """torch's archive written anew, by another hand."""

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
    """100 MB of zeros in 400 kB."""
    state = {"conv1.weight": torch.zeros(25_000_000)}
    torch.save(state, file)
    with zipfile.ZipFile(file) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in entries:
            archive.writestr(name, content)


def legacy_claim(file):
    """An old file whose only storage says that it has 2**30 numbers."""
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


def spoilt(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


LIMIT = resource.getrlimit(resource.RLIMIT_AS)
EVIL = "evil"  # the file that hostile content makes, if it is run
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
        "a pickle that asks for more than tensors",
    ),
    "a pickled object": (saved({**STATE, "extra": Touch(Path(EVIL))}), "asks for more than tensors (posix.system)"),
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
    "a web page": (lambda file: file.write_text("<html>404</html>\n" * 20), "a pickle that asks for more than tensors"),
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
    "a claim of an old file": (legacy_claim, "asks for far more memory"),
    "a claim of a tensor": (saved(Call(torch.Tensor, 30_000, 30_000)), "asks for far more memory"),
    "a claim of bytes": (saved({"x": Call(bytearray, 3 * 10**9)}), "asks for far more memory"),
    "NaN": (one("fc.weight", spoilt(float("nan"))), "fc.weight has NaN or infinity in 1 of its 128 values"),
    "infinity": (one("layer1.0.bn1.running_var", spoilt(float("inf"))), "layer1.0.bn1.running_var has NaN or inf"),
    "too large": (one("fc.bias", lambda t: t.double() + 1e300), "fc.bias has NaN or infinity in 4 of"),
    "complex": (one("fc.bias", lambda t: t.to(torch.complex64)), "fc.bias is complex64"),
    "whole numbers": (one("fc.weight", lambda t: t.to(torch.int8)), "fc.weight is int8"),
    "sparse": (one("fc.weight", lambda t: t.to_sparse()), "fc.weight is a sparse tensor"),
    "without values": (one("fc.weight", lambda t: t.to("meta")), "fc.weight has a shape but no values"),
    "expanded": (one("fc.weight", lambda t: torch.zeros(1).expand(10**7, 10**7)), "holds fewer numbers than that"),
    "a list": (saved([torch.zeros(4)]), "expected a state dict of tensors, found list"),
    "nothing in it": (saved({}), "found an empty dict"),
    "no weights in it": (saved({"epoch": 3}), "found a dict of 'epoch'"),
}


def memory(kind):
    return int(re.search(rf"Vm{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.filterwarnings("ignore")  # torch.jit's, zipfile's
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_or_is_hostile_is_refused_with_the_reason(name, tmp_path, monkeypatch):
    write, reason = REFUSED[name]
    monkeypatch.chdir(tmp_path)  # where hostile content would leave its mark
    file = tmp_path / "w"
    write(file)
    model = model_of(seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    held = memory("RSS")
    with pytest.raises(UserError) as caught:
        convert_weights.load_any_format(model, file)
    assert memory("HWM") - held < 64, "MB"
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert reason in message
    assert message.isprintable()
    assert len(message) < len(str(file)) + 400
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not (tmp_path / EVIL).exists()
    assert resource.getrlimit(resource.RLIMIT_AS) == LIMIT


@pytest.mark.parametrize("content", [Touch(Path(EVIL)), Call(eval, f"open({EVIL!r}, 'w')")])
def test_the_traps_do_work(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(content))
    assert (tmp_path / EVIL).exists()


def test_a_quantised_tensor_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="deprecated"):
        quantised = torch.quantize_per_tensor(STATE["fc.weight"], 0.1, 0, torch.qint8)
        torch.save(with_one("fc.weight", quantised), tmp_path / "w")
    with pytest.raises(UserError, match=r"fc\.weight is quantised"):
        convert_weights.load_any_format(model_of(seed=1), tmp_path / "w")


# --- the mapping -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet8x4", "resnet50", "wrn_16_2", "vgg8", "mobilenetv2", "shufflenetv2"]
)
def test_no_model_of_ours_has_two_layers_of_one_alias(name):
    with torch.device("meta"):
        keys = create_model(name, config.load(ROOT).models[name], 10, 32).state_dict()
    assert len({convert_weights._alias(key) for key in keys}) == len(keys)


def test_weights_of_the_same_shapes_in_the_same_order_are_not_guessed(tmp_path):
    """A VGG in one sequence of layers, with five max-pools: an order of shapes like ours, and another function."""
    recipe = config.load(ROOT).models["vgg8"]
    ours = create_model("vgg8", recipe, 10, 32).eval()
    layers = []
    for at in range(5):
        layers += [*ours.get_submodule(f"block{at}"), nn.MaxPool2d(2)]
    theirs = nn.Module()
    theirs.features, theirs.classifier = nn.Sequential(*layers).eval(), ours.classifier
    shapes = [value.shape for value in theirs.state_dict().values()]
    assert shapes == [value.shape for value in ours.state_dict().values()]
    x = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(theirs.classifier(theirs.features(x).flatten(1)), ours(x), rtol=0.1)
    torch.save(theirs.state_dict(), tmp_path / "w")
    with pytest.raises(UserError, match=r"block0\.0\.weight is missing"):
        convert_weights.load_any_format(create_model("vgg8", recipe, 10, 32), tmp_path / "w")


def test_the_real_resnet56_loads_as_it_is():
    given = os.environ.get("KDFLOW_TEACHER")
    if given is None or not Path(given).is_file():
        pytest.skip("KDFLOW_TEACHER is not set or no file: it names the weights of chenyaofo's ResNet-56 of CIFAR-100")
    model = create_model("resnet56", config.load(ROOT).models["resnet56"], 100, 32)
    mapped = convert_weights.load_any_format(model, Path(given), "f2eff4c8")
    assert mapped.summary == ""
    assert mapped.sha256 == "f2eff4c8461ca1e0d39af83a65f7243bf7d29ec421efee3064bcee93a3caaa73"


def test_the_hash_is_asked_first(tmp_path):
    torch.save(STATE, tmp_path / "w")
    with pytest.raises(UserError, match=r"sha256 is [0-9a-f]{64}, expected 00000000\.\.\."):
        convert_weights.load_any_format(model_of(seed=1), tmp_path / "w", "00000000")
