"""Costs of models, compared with an independent count and with every figure of the paper's Tables 6-8."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from torch import nn

from kdflow import config
from kdflow.cli import experiment
from kdflow.core.errors import UserError
from kdflow.models import cost, create_model
from kdflow.models.cost import Cost

EXPERIMENT = config.load(ROOT)

# Per column of the paper's Tables 6, 7 and 8: params (1e6) of teacher and student, compression,
# FLOPs (1e9) of teacher and student, speed-up, as printed.
PRINTED = {
    ("cifar100", "wrn_40_2", "wrn_16_2"): "2.2497 0.7015 3.2072 0.6552 0.2022 3.2399",
    ("cifar100", "resnet56", "resnet20"): "0.8574 0.2768 3.0979 0.2515 0.0816 3.0808",
    ("cifar100", "resnet32x4", "resnet8x4"): "7.4239 1.2308 6.0319 2.1661 0.3541 6.1164",
    ("cifar100", "vgg13", "vgg8"): "9.4563 3.9621 2.3867 0.5699 0.1924 2.9621",
    ("cifar100", "vgg13", "mobilenetv2"): "9.4563 0.7945 11.9027 0.5699 0.0116 49.1399",
    ("cifar100", "resnet50", "vgg8"): "23.6521 3.9621 5.9696 2.5960 0.1924 13.4939",
    ("cifar100", "resnet32x4", "shufflenetv2"): "7.4239 1.3393 5.5430 2.1661 0.0863 25.0915",
    ("tiny_imagenet", "wrn_40_2", "wrn_16_2"): "2.2626 0.7144 3.1674 2.6208 0.8089 3.2400",
    ("tiny_imagenet", "resnet56", "resnet20"): "0.8639 0.2833 3.0498 1.0060 0.3265 3.0809",
    ("tiny_imagenet", "resnet32x4", "resnet8x4"): "7.4496 1.2565 5.9289 8.6642 1.4165 6.1168",
    ("tiny_imagenet", "vgg13", "vgg8"): "9.5076 4.0134 2.3690 1.8263 0.5428 3.3643",
    ("tiny_imagenet", "vgg13", "mobilenetv2"): "9.5076 0.9226 10.3056 1.8263 0.0459 39.8097",
    ("tiny_imagenet", "resnet50", "vgg8"): "23.8570 4.0134 5.9444 10.3833 0.5428 19.1276",
    ("tiny_imagenet", "resnet32x4", "shufflenetv2"): "7.4496 1.4418 5.1667 8.6642 0.3449 25.1210",
    ("imagenet", "resnet34", "resnet18"): "21.7806 11.6799 1.8648 7.3275 3.6281 2.0196",
}

# Where a student has grouped convolutions: its true FLOPs (1e9) and speed-up.
TRUE = {
    ("cifar100", "vgg13", "mobilenetv2"): "0.0130 43.6774",
    ("cifar100", "resnet32x4", "shufflenetv2"): "0.0890 24.3356",
    ("tiny_imagenet", "vgg13", "mobilenetv2"): "0.0517 35.3405",
    ("tiny_imagenet", "resnet32x4", "shufflenetv2"): "0.3556 24.3633",
}


def count_forward_pass(model, image_size):
    """Count the operations of each layer in a forward pass of real tensors."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    flops = paper = 0

    def add(layer, args, out):
        nonlocal flops, paper
        groups = 1
        if isinstance(layer, nn.Linear):
            one = layer.in_features * layer.out_features
        else:
            groups = layer.groups
            # Each output position reads a window; transposed, each input position writes a window.
            places = (args[0] if isinstance(layer, nn.ConvTranspose2d) else out).shape[2:]
            window = math.prod(layer.kernel_size)
            one = window * layer.in_channels // groups * layer.out_channels * math.prod(places)
        flops += 2 * one
        paper += 2 * one // groups

    handles = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, image_size, image_size))
    for handle in handles:
        handle.remove()
    return Cost(sum(p.numel() for layer in layers for p in layer.parameters()), flops, paper)


class Toy(nn.Module):
    """A model that can be counted by hand."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)  # on 4 x 4: 8 * 3 * 9 = 216 weights, 8 biases, 16 places
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)  # 8 * 9 = 72 weights, 4 places
        self.pointwise = nn.Conv2d(8, 4, 1, groups=2, bias=False)  # 4 * 4 = 16 weights, 4 places
        self.fc = nn.Linear(4, 10)  # 40 weights, 10 biases, one place

    def forward(self, x):
        x = self.pointwise(self.depthwise(self.norm(self.conv(x)).relu()))
        return self.fc(x.mean((2, 3)))


def test_a_toy_counted_by_hand():
    params = 216 + 8 + 72 + 16 + 40 + 10
    flops = 2 * (216 * 16 + 72 * 4 + 16 * 4 + 40)
    paper = 2 * (216 * 16 + 72 * 4 // 8 + 16 * 4 // 2 + 40)
    assert cost.count_cost(Toy(), 4) == Cost(params, flops, paper) == count_forward_pass(Toy(), 4)


@st.composite
def convolutions(draw):
    """A convolution of any setting, and its input channels."""
    groups = draw(st.integers(1, 4))
    channels_in, channels_out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    rest = {name: draw(st.integers(1, 2)) for name in ("stride", "dilation")}
    rest |= {"padding": draw(st.integers(0, 2)), "groups": groups, "bias": draw(st.booleans())}
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    kind = draw(st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]))
    return kind(channels_in, channels_out, kernel, **rest), channels_in


@given(convolutions(), st.integers(5, 9))
@settings(max_examples=60, deadline=None)
def test_any_convolution_is_counted_as_in_a_forward_pass(made, image_size):
    layer, channels_in = made
    model = nn.Sequential(nn.Conv2d(3, channels_in, 1), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert cost.count_cost(model, image_size) == count_forward_pass(model, image_size)


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5", "regnet_y_400mf"])
def test_torchvision_models_are_counted_as_in_a_forward_pass(name):
    model = getattr(torchvision.models, name)()
    counted = cost.count_cost(model, 32)
    assert counted == count_forward_pass(model, 32)
    assert counted.paper_flops < counted.flops


def test_attention_is_counted():
    """ViT-B/16 at 224 px: torchvision documents 17.56 (1e9 multiply-adds), 86.6 (1e6 parameters of any kind)."""
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    counted = cost.count_cost(model, 224)
    width, tokens, layers = 768, 197, 12
    projections = layers * tokens * (4 + 2 * 4) * width**2  # query, key, value, output; two layers of a block
    products = layers * 2 * tokens**2 * width  # query by key, weights by value
    assert counted.flops == 2 * (projections + products + 196 * width * 3 * 16**2 + width * 1000)
    assert round(counted.flops / 2e9, 2) == 17.56
    left_out = {"class_token", "encoder.pos_embedding"}
    norms = {name for name, _ in model.named_parameters() if ".ln" in name}
    assert counted.params == sum(p.numel() for name, p in model.named_parameters() if name not in left_out | norms)


def test_a_shared_weight_counts_once_and_is_used_twice():
    layer = nn.Conv2d(3, 3, 1)
    assert cost.count_cost(nn.Sequential(layer, layer), 2) == Cost(12, 2 * 2 * 9 * 4, 2 * 2 * 9 * 4)


def test_counting_does_not_change_the_model():
    model = Toy().double().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    counted = cost.count_cost(model, 4)
    assert torch.equal(torch.get_rng_state(), random)
    assert counted == cost.count_cost(Toy(), 4)
    assert model.training
    assert model.norm.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# --- the paper ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    """The rows of teacher and student by (dataset, teacher, student), as the command without names shows them."""
    found = {}
    for dataset in ("cifar100", "tiny_imagenet", "imagenet", "digits"):
        rows = cost.compare(EXPERIMENT, dataset, [])
        found |= {(dataset, t.model, s.model): (t, s) for t, s in zip(rows[::2], rows[1::2], strict=True)}
    return found


@pytest.mark.parametrize("column", PRINTED, ids=" ".join)
def test_the_paper_s_tables_to_the_last_digit(pairs, column):
    teacher, student = (cost.format_row(row) for row in pairs[column])
    assert " ".join([teacher[1], *student[1:3], teacher[5], *student[5:]]) == PRINTED[column]


@pytest.mark.parametrize("column", PRINTED, ids=" ".join)
def test_true_flops_differ_from_the_paper_s_for_grouped_convolutions_only(pairs, column):
    teacher, student = (cost.format_row(row) for row in pairs[column])
    assert teacher[3] == teacher[5]
    assert " ".join(student[3:5]) == TRUE.get(column, " ".join(student[5:]))


def test_pairs_are_those_of_the_paper_in_its_order(pairs):
    """Beside these there are a pair of Table 9, which no table of costs has, and those of evidence/ and the demo."""
    others = [("cifar100", "resnet110", "resnet20")]
    others += [("cifar100", "resnet56", student) for student in ("resnet8", "mobilenetv2")]
    assert [key for key in pairs if key not in others and key[0] != "digits"] == list(PRINTED)
    assert {key[1:] for key in pairs if key[0] == "digits"} == {("resnet20", "resnet8"), ("resnet20", "resnet14")}
    assert [(pair.teacher, pair.student) for pair in EXPERIMENT.pairs.values()] == list(
        dict.fromkeys((teacher, student) for _, teacher, student in pairs)
    )
    for name, pair in EXPERIMENT.pairs.items():
        assert name == f"{pair.teacher}_to_{pair.student}"
        assert all(quoted.student_top1 < quoted.teacher_top1 for quoted in pair.datasets.values() if quoted)


@pytest.mark.parametrize("name", EXPERIMENT.models)
def test_every_model_is_counted_as_in_a_forward_pass(name):
    model = create_model(name, EXPERIMENT.models[name], 100, 32)
    assert cost.count_cost(model, 32) == count_forward_pass(model, 32)


# --- names and images --------------------------------------------------------------------------------------


def test_models_are_compared_with_the_first():
    teacher, *students = cost.compare(EXPERIMENT, "digits", ["resnet20", "resnet8", "resnet20"])
    assert teacher.ratios is None
    assert students[0].ratios == cost.ratios(teacher.cost, students[0].cost)
    assert students[0].ratios.compression == teacher.cost.params / students[0].cost.params
    assert students[0].ratios.speed_up == teacher.cost.flops / students[0].cost.flops
    assert students[1].ratios == cost.Ratios(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("dataset", "names", "line"),
    [
        ("cifar10", [], "dataset: unknown name 'cifar10'; did you mean 'cifar100'?"),
        ("x", [], f"dataset: unknown name 'x'; allowed: {', '.join(sorted(EXPERIMENT.datasets))}"),
        ("digits", ["resnet8", "resnet9"], "model: unknown name 'resnet9'; did you mean 'resnet8'?"),
    ],
)
def test_an_unknown_name_is_one_line(dataset, names, line):
    with pytest.raises(UserError) as caught:
        cost.compare(EXPERIMENT, dataset, names)
    assert str(caught.value) == line


def test_a_dataset_without_pairs_is_one_line():
    others = {name: pair for name, pair in EXPERIMENT.pairs.items() if "digits" not in pair.datasets}
    with pytest.raises(UserError) as caught:
        cost.compare(EXPERIMENT.model_copy(update={"pairs": others}), "digits", [])
    has = "dataset: digits has no pairs (cifar100, imagenet, tiny_imagenet have); give the models to compare"
    assert str(caught.value) == has


def test_a_model_that_does_not_accept_the_images_is_one_line(monkeypatch):
    monkeypatch.setattr(cost, "create_model_on_meta", lambda *_: nn.Sequential(nn.Conv2d(3, 8, 99)))
    with pytest.raises(UserError, match=r"^resnet8 does not accept images of 16 px: .*[Kk]ernel size") as caught:
        cost.compare(EXPERIMENT, "digits", ["resnet8"])
    assert len(str(caught.value).splitlines()) == 1


# --- the command -------------------------------------------------------------------------------------------


def run(*arguments):
    command = [sys.executable, "-m", "kdflow.cli", "cost", *arguments]
    env = {**os.environ, "COLUMNS": "20"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)


def test_the_command_prints_every_digit(pairs):
    done = run("--dataset", "cifar100")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "cifar100: 3 x 32 x 32"
    rows = [row for column, both in pairs.items() for row in both if column[0] == "cifar100"]
    shown = [line for line in lines if line.split(" ")[0] in EXPERIMENT.models]
    assert shown == [" ".join(" ".join(cost.format_row(row)).split()) for row in rows]
    assert max(map(len, done.stdout.splitlines()[:-2])) <= 80, "fits a terminal of 80 columns"


def test_the_command_in_json_has_every_digit(capsys):
    experiment.cost(["resnet20", "resnet8"], "cifar100", ROOT, as_json=True)
    teacher, student = json.loads(capsys.readouterr().out)
    counted = {"params": 276756, "flops": 81637888, "paper_flops": 81637888}
    assert teacher == {"model": "resnet20", **counted, "compression": None, "speed_up": None, "paper_speed_up": None}
    assert student["speed_up"] == student["paper_speed_up"] == counted["flops"] / student["flops"]


def test_the_command_uses_the_dataset_of_params(capsys):
    experiment.cost(["resnet8"], root=ROOT)
    assert capsys.readouterr().out.startswith("digits: 3 x 16 x 16 ")


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("resnt20", "error: kdflow cost: model: unknown name 'resnt20'; did you mean 'resnet20'?\n"),
        ("--bogus", "error: kdflow cost: No such option: --bogus\n"),
    ],
)
def test_a_bad_command_is_one_line(argument, line):
    done = run(argument)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
