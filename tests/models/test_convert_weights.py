"""Checkpoints of other projects: loaded to the same logits, with names mapped and never guessed."""

import argparse
import os
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoints import CLASSES, KUANGLIU, LOGITS, STATE, logits_of, model_of, renamed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT
from torch import nn
from torch.nn import functional as F

from kdflow import config
from kdflow.core.errors import UserError
from kdflow.models import convert_weights, create_model

ALL, FLOATS = len(STATE), sum(value.is_floating_point() for value in STATE.values())


def cast(dtype):
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in STATE.items()}


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
    """A network of such blocks: the same function as a ResNet of kdflow with other names."""

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


def logits_with(state):
    model = model_of(seed=5)
    model.load_state_dict(state)
    return logits_of(model)


# The content of the file, a part of the conversion's summary, the logits of the loaded model.
LOADED = {
    "as it is": (STATE, "", LOGITS),
    "DataParallel": (renamed(("^", "module.")), f"'module.' or '_orig_mod.' removed ({ALL})", LOGITS),
    "nested": (
        {"epoch": 3, "arch": "r", "state_dict": renamed(("^", "module.")), "optimizer": OPTIMIZER},
        f"'state_dict' used ({ALL}); 'module.'",
        LOGITS,
    ),
    "CRD": ({"epoch": 240, "model": STATE, "best_acc": torch.tensor(72.3)}, f"'model' used ({ALL})", LOGITS),
    "numbers of numpy": (
        {"model": STATE, "best_acc1": np.float64(72.3), "epoch": np.int64(3), "seen": np.bool_(True)},
        f"'model' used ({ALL})",
        LOGITS,
    ),
    "CRD with options": ({"opt": argparse.Namespace(lr=0.1), "model": STATE}, f"'model' used ({ALL})", LOGITS),
    "kuangliu": ({"net": KUANGLIU, "acc": 95.1}, "shortcut -> downsample (12); linear -> fc (2)", LOGITS),
    "weiaicunzai": (STAGES.state_dict(), "convN_x.N.residual_function.N -> layerN.N.convN (6)", logits_of(STAGES)),
    "pytorchcv": (PYTORCHCV, "features.stageN.unitN.body.convN.conv -> layerN.N.convN (6)", LOGITS),
    "OpenMMLab": ({"meta": {"v": "1"}, "state_dict": OPENMM}, "backbone.convN -> convN (1)", LOGITS),
    "D-X-Y": (DXY, "stage_N.N.conv_a -> layerN.N.convN (3)", LOGITS),
    "Lightning": (
        {"state_dict": renamed(("^", "model.")), "hparams": {"lr": 0.1}},
        f"'model.' removed ({ALL})",
        LOGITS,
    ),
    "compiled": (renamed(("^", "_orig_mod.module.")), f"'module.' or '_orig_mod.' removed ({ALL})", LOGITS),
    "a part DataParallel": (renamed(("^(layer1)", r"\1.module")), "removed (12)", LOGITS),
    "averaged": ({"n_averaged": torch.tensor(3), **renamed(("^", "module."))}, "n_averaged ignored (1)", LOGITS),
    "beside an average": (
        {"model": STATE, "model_ema": cast(torch.float64)},
        f"'model_ema' also fits, ignored ({ALL})",
        LOGITS,
    ),
    "counted by thop": ({**STATE, **COUNTS}, "total_params ignored (1)", LOGITS),
    "torch 0.4": (
        {k: v for k, v in STATE.items() if "tracked" not in k},
        f"num_batches_tracked set to 0 ({ALL - FLOATS})",
        LOGITS,
    ),
    "float16": (cast(torch.float16), f"float16 -> float32 ({FLOATS})", logits_with(cast(torch.float16))),
    "bfloat16": (cast(torch.bfloat16), f"bfloat16 -> float32 ({FLOATS})", logits_with(cast(torch.bfloat16))),
    "float64": (cast(torch.float64), f"float64 -> float32 ({FLOATS})", LOGITS),
    "parameters": ({k: nn.Parameter(v) if v.is_floating_point() else v for k, v in STATE.items()}, "", LOGITS),
    "channels last": (model_of().to(memory_format=torch.channels_last).state_dict(), "", LOGITS),
}


TENSORS_ONLY = [
    name for name, row in LOADED.items() if all(isinstance(value, torch.Tensor) for value in row[0].values())
]
FORMS = [(name, form) for name in LOADED for form in ("zip", "legacy")]


@pytest.mark.parametrize(("name", "form"), [*FORMS, *((name, "safetensors") for name in TENSORS_ONLY)])
def test_a_checkpoint_that_fits_is_loaded_exactly(name, form, tmp_path):
    content, steps, expected = LOADED[name]
    file = tmp_path / "w"
    if form == "safetensors":
        safetensors.torch.save_file({key: value.detach().contiguous() for key, value in content.items()}, file)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    model = model_of(seed=1)
    conversion = convert_weights.load_any_format(model, file)
    assert torch.equal(logits_of(model), expected)
    assert steps in conversion.summary if steps else conversion.summary == ""
    assert {name for _, name in conversion.names} >= {key for key in STATE if "tracked" not in key}


def prefixed(prefix):
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


WRAPPINGS = [prefixed(prefix) for prefix in ("module.", "_orig_mod.", "model.", "net.", "backbone.", "student.")]
RENAMINGS = [(), ((r"^fc\.", "linear."),), (("downsample", "skip"),)]
NESTINGS = [
    lambda state, key=key: {key: state, "epoch": 3} for key in ("state_dict", "model", "net", "student", "another")
]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    renaming=st.sampled_from(RENAMINGS),
    wrappings=st.lists(st.sampled_from(WRAPPINGS), max_size=3),
    nestings=st.lists(st.sampled_from(NESTINGS), max_size=2),
)
def test_any_combination_of_wrappers_is_removed(renaming, wrappings, nestings, tmp_path):
    content = renamed(*renaming)
    for change in (*wrappings, *nestings):
        content = change(content)
    torch.save(content, tmp_path / "w")
    model = model_of(seed=1)
    convert_weights.load_any_format(model, tmp_path / "w")
    assert torch.equal(logits_of(model), LOGITS)


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


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet8x4", "resnet50", "wrn_16_2", "vgg8", "mobilenetv2", "shufflenetv2"]
)
def test_no_model_of_kdflow_has_two_layers_of_one_alias(name):
    with torch.device("meta"):
        keys = create_model(name, config.load(ROOT).models[name], 10, 32).state_dict()
    assert len({convert_weights._alias(key) for key in keys}) == len(keys)


def test_weights_of_the_same_shapes_in_the_same_order_are_not_guessed(tmp_path):
    """A VGG in one sequence of layers, with five max-pools: the same order of shapes, and another function."""
    recipe = config.load(ROOT).models["vgg8"]
    model = create_model("vgg8", recipe, 10, 32).eval()
    layers = []
    for at in range(5):
        layers += [*model.get_submodule(f"block{at}"), nn.MaxPool2d(2)]
    other = nn.Module()
    other.features, other.classifier = nn.Sequential(*layers).eval(), model.classifier
    shapes = [value.shape for value in other.state_dict().values()]
    assert shapes == [value.shape for value in model.state_dict().values()]
    x = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(other.classifier(other.features(x).flatten(1)), model(x), rtol=0.1)
    torch.save(other.state_dict(), tmp_path / "w")
    with pytest.raises(UserError, match=r"block0\.0\.weight is missing"):
        convert_weights.load_any_format(create_model("vgg8", recipe, 10, 32), tmp_path / "w")


def test_the_real_resnet56_loads_without_a_conversion():
    given = os.environ.get("KDFLOW_TEACHER")
    if given is None or not Path(given).is_file():
        pytest.skip("KDFLOW_TEACHER is not set or no file: it names the weights of chenyaofo's ResNet-56 of CIFAR-100")
    model = create_model("resnet56", config.load(ROOT).models["resnet56"], 100, 32)
    conversion = convert_weights.load_any_format(model, Path(given), "f2eff4c8")
    assert conversion.summary == ""
    assert conversion.sha256 == "f2eff4c8461ca1e0d39af83a65f7243bf7d29ec421efee3064bcee93a3caaa73"


def test_a_wrong_hash_is_refused(tmp_path):
    torch.save(STATE, tmp_path / "w")
    with pytest.raises(UserError, match=r"sha256 is [0-9a-f]{64}, expected 00000000\.\.\."):
        convert_weights.load_any_format(model_of(seed=1), tmp_path / "w", "00000000")
