"""Every family: gradients at several image sizes, a second implementation of its forward pass, and its refusals."""

import math
import sys

import pytest
import torch
from paths import ROOT
from torch import nn
from torch.nn import functional as F

from kdflow import config
from kdflow.config import Architecture, Model
from kdflow.core.errors import UserError
from kdflow.models import create_model
from kdflow.models.features import FeatureExtractor, output_shapes

RECIPES = config.load(ROOT).models
OWN = ["resnet8", "wrn_16_2", "vgg8", "mobilenetv2", "shufflenetv2", "resnet50", "resnet18"]  # one of each family
SMALL_BOTTLENECK = Model(family="bottleneck", options={"blocks": [1, 1, 1, 1]})


def _model(name, classes=10, image_size=32, seed=0):
    torch.manual_seed(seed)
    return create_model(name, RECIPES.get(name, SMALL_BOTTLENECK), classes, image_size)


def _check_gradients(model, image_size, classes):
    torch.manual_seed(1)
    logits = model(torch.randn(2, 3, image_size, image_size))
    assert logits.shape == (2, classes)
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert sum(parameter.grad.square().sum() for parameter in model.parameters()) > 0


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_finite_gradients(name):
    _check_gradients(_model(name, 7), 32, 7)


@pytest.mark.parametrize("image_size", [64, 96])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OWN else pytest.mark.slow) for name in RECIPES]
)
def test_every_recipe_has_finite_gradients_at_other_sizes(name, image_size):
    _check_gradients(_model(name, 3, image_size), image_size, 3)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_four_maps_or_more_and_what_its_classifier_reads(name):
    said = output_shapes(Architecture(name=name, model=RECIPES[name]), 11, 96)
    assert said.logits.shape == (2, 11)
    assert len(said.maps) >= 4
    assert all(feature.ndim == 4 for feature in said.maps)
    assert said.pooled is not None
    assert said.pooled.ndim == 2


# --- a second implementation -------------------------------------------------------------------------------


class Network:
    """The layers of a model as functions of its state; a depthwise convolution is a sum over patches."""

    def __init__(self, model):
        self.state, self.training = model.state_dict(), model.training

    def has(self, name):
        return f"{name}.weight" in self.state

    def conv(self, name, x, stride=1):
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        padding = weight.shape[2] // 2
        if weight.shape[1] == x.shape[1]:
            return F.conv2d(x, weight, bias, stride, padding)
        assert weight.shape[0] == x.shape[1], "depthwise"
        patches = F.unfold(x, weight.shape[2], padding=padding, stride=stride).unflatten(1, (x.shape[1], -1))
        y = (patches * weight.flatten(1)[:, :, None]).sum(2)
        return y.unflatten(2, (math.ceil(x.shape[2] / stride), -1))

    def norm(self, name, x):
        weight, bias, mean, var = (
            self.state[f"{name}.{key}"][:, None, None] for key in ("weight", "bias", "running_mean", "running_var")
        )
        if self.training:
            mean = x.mean((0, 2, 3), keepdim=True)
            var = (x - mean).square().mean((0, 2, 3), keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def unit(self, conv, norm, x, stride=1):
        return self.norm(norm, self.conv(conv, x, stride)).clamp(min=0)

    def linear(self, name, x):
        pooled = x.flatten(2).sum(2) / (x.shape[2] * x.shape[3])
        return pooled @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]


def _wrn(net, x):
    x = net.conv("conv1", x)
    for stage in (1, 2, 3):
        for block in (0, 1):
            at, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            active = net.norm(f"{at}.bn1", x).clamp(min=0)
            y = net.unit(f"{at}.conv1", f"{at}.bn2", active, stride)
            x = net.conv(f"{at}.convShortcut", active, stride) if net.has(f"{at}.convShortcut") else x
            x = x + net.conv(f"{at}.conv2", y)
    return net.linear("fc", net.norm("bn1", x).clamp(min=0))


def _vgg(net, x):
    large = x.shape[2] >= 64
    for block in range(5):
        x = net.unit(f"block{block}.0", f"block{block}.1", x)
        if block < 3 or (block == 3 and large):
            corners = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
            x = torch.stack(corners).amax(0)
    return net.linear("classifier", x)


def _mobilenetv2(net, x):
    x = net.unit("conv1.0", "conv1.1", x, 2)
    for stage, (blocks, first) in enumerate([(1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)]):
        for block in range(blocks):
            at = f"blocks.{stage}.{block}.conv"
            y = net.unit(f"{at}.0", f"{at}.1", x)
            y = net.unit(f"{at}.3", f"{at}.4", y, first if block == 0 else 1)
            y = net.norm(f"{at}.7", net.conv(f"{at}.6", y))
            x = x + y if block > 0 else y  # the first block of every stage changes the width
    return net.linear("classifier.0", net.unit("conv2.0", "conv2.1", x))


def _shufflenetv2(net, x):
    def shuffle(left, right):
        x = torch.cat((left, right), dim=1)
        half = x.shape[1] // 2
        return torch.stack([x[:, group * half + i] for i in range(half) for group in (0, 1)], dim=1)

    x = net.unit("conv1", "bn1", x)
    for stage, blocks in ((1, 4), (2, 8), (3, 4)):
        at = f"layer{stage}.0"
        left = net.unit(f"{at}.conv2", f"{at}.bn2", net.norm(f"{at}.bn1", net.conv(f"{at}.conv1", x, 2)))
        right = net.unit(f"{at}.conv3", f"{at}.bn3", x)
        right = net.norm(f"{at}.bn4", net.conv(f"{at}.conv4", right, 2))
        x = shuffle(left, net.unit(f"{at}.conv5", f"{at}.bn5", right))
        for block in range(1, blocks):
            at, half = f"layer{stage}.{block}", x.shape[1] // 2
            right = net.unit(f"{at}.conv1", f"{at}.bn1", x[:, half:])
            right = net.norm(f"{at}.bn2", net.conv(f"{at}.conv2", right))
            x = shuffle(x[:, :half], net.unit(f"{at}.conv3", f"{at}.bn3", right))
    return net.linear("linear", net.unit("conv2", "bn2", x))


def _bottleneck(net, x):
    x = net.unit("conv1", "bn1", x)
    for stage in (1, 2, 3, 4):
        at, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        y = net.unit(f"{at}.conv1", f"{at}.bn1", x)
        y = net.unit(f"{at}.conv2", f"{at}.bn2", y, stride)
        y = net.norm(f"{at}.bn3", net.conv(f"{at}.conv3", y))
        x = (y + net.norm(f"{at}.shortcut.1", net.conv(f"{at}.shortcut.0", x, stride))).clamp(min=0)
    return net.linear("linear", x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("name", "second", "image_size"),
    [
        ("wrn_16_2", _wrn, 16),
        ("vgg8", _vgg, 32),
        ("vgg8", _vgg, 64),
        ("mobilenetv2", _mobilenetv2, 32),
        ("shufflenetv2", _shufflenetv2, 16),
        ("small bottleneck", _bottleneck, 16),
    ],
)
def test_forward_equals_a_second_implementation(name, second, image_size, training):
    model = _model(name, image_size=image_size).double()
    generator = torch.Generator().manual_seed(1)
    earlier, x = torch.randn(2, 3, 3, image_size, image_size, generator=generator, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # which would start as all 0 and 1
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
            module.momentum = 1.0
    with torch.no_grad():
        model(earlier)  # for running statistics that let the signal through
        model.train(training)
        expected = second(Network(model), x)
        assert (expected - expected.mean(0)).std() > 1e-4, "it says something of the image"
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


# --- fresh weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wrn_16_2", "vgg8", "mobilenetv2", "small bottleneck"])
def test_convolutions_start_as_he_et_al_2015_and_batch_norms_as_nothing(name):
    for module in _model(name, 100).modules():
        if isinstance(module, nn.Conv2d):
            size = module.kernel_size[0] ** 2 * module.out_channels  # of a depthwise one too
            if module.weight.numel() > 2000:
                assert module.weight.std().item() == pytest.approx(math.sqrt(2 / size), rel=0.1)
                assert module.weight.mean().item() == pytest.approx(0, abs=0.1 * math.sqrt(2 / size))
            assert (module.bias is not None) == (name == "vgg8")
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


@pytest.mark.parametrize(("name", "head"), [("vgg8", "classifier"), ("mobilenetv2", "classifier.0")])
def test_the_classifiers_of_vgg_and_mobilenetv2_start_small(name, head):
    linear = _model(name, 100).get_submodule(head)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not linear.bias.any()


def test_the_classifier_of_a_wide_resnet_starts_without_bias():
    fc = _model("wrn_16_2", 100).fc
    assert not fc.bias.any()
    assert fc.weight.abs().max().item() == pytest.approx(1 / math.sqrt(128), rel=0.01)


def test_shufflenetv2_starts_as_torch_does():
    for module in _model("shufflenetv2", 100).modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 2000:
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert module.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("name", ["mobilenetv2", "shufflenetv2"])
def test_narrow_and_depthwise_convolutions_have_right_gradients_in_channels_last(name):
    """torch 2.14 corrupts memory in some backward passes of this layout; these models must not meet them."""
    seen = set()
    with torch.device("meta"):
        model = create_model(name, RECIPES[name], 10, 32)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(
                    lambda m, x: seen.add(
                        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.groups, x[0].shape[2])
                    )
                )
        model(torch.zeros(2, 3, 32, 32))
    assert len(seen) > 10
    torch.manual_seed(0)
    for width_in, width, kernel, stride, groups, size in sorted(seen):
        x, weight = torch.randn(2, width_in, size, size), torch.randn(width, width_in // groups, kernel, kernel)
        found = []
        for layout in (torch.contiguous_format, torch.channels_last):
            leaves = [t.clone(memory_format=layout).requires_grad_() for t in (x, weight)]
            y = F.conv2d(*leaves, None, stride, kernel // 2, groups=groups)
            y.backward(torch.cos(y.detach()))
            found.append([leaf.grad for leaf in leaves])
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


# --- libraries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "features", "head", "shapes", "pooled"),
    [
        ({"name": "resnet18"}, ["relu", "layer1", "layer4"], "fc", [(64, 16), (64, 8), (512, 1)], 512),
        ({"name": "mobilenet_v3_small"}, ["features.0", "features.12"], "classifier", [(16, 16), (576, 1)], 576),
        ({"name": "squeezenet1_1", "dropout": 0.1}, ["features.2"], None, [(64, 7)], None),
    ],
)
def test_torchvision_by_name(options, features, head, shapes, pooled):
    recipe = Model(family="torchvision", options=options, features=features, head=head)
    torch.manual_seed(0)
    model = create_model("mine", recipe, 5, 32).eval()
    x = torch.randn(2, 3, 32, 32)
    said = FeatureExtractor("mine", model, recipe)(x)
    torch.testing.assert_close(said.logits, model(x), rtol=0, atol=0)
    assert said.logits.shape == (2, 5)
    assert [tuple(feature.shape[1:3]) for feature in said.maps] == shapes
    assert (None if said.pooled is None else said.pooled.shape[1]) == pooled


def test_torchvision_s_transformers_are_told_the_image_size():
    recipe = Model(family="torchvision", options={"name": "vit_b_16"})
    assert output_shapes(Architecture(name="mine", model=recipe), 5, 48).logits.shape == (2, 5)


def test_timm_by_name():
    pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[timm]'")
    options = {"name": "test_resnet", "drop_rate": 0.1}
    recipe = Model(family="timm", options=options, features=["layer1", "layer4"], head="fc")
    model = create_model("mine", recipe, 5, 32).eval()
    said = FeatureExtractor("mine", model, recipe)(torch.randn(2, 3, 32, 32))
    assert said.logits.shape == (2, 5)
    assert [feature.shape[0] for feature in said.maps] == [2, 2]
    assert said.pooled.shape[0] == 2


def test_timm_that_is_not_installed_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError) as caught:
        create_model("mine", Model(family="timm", options={"name": "resnet18"}), 10, 32)
    assert str(caught.value).endswith("timm is not installed: pip install -e '.[timm]'")


# --- refusals ----------------------------------------------------------------------------------------------


def _refusal(family, options, image_size):
    with pytest.raises(UserError) as caught:
        create_model("mine", Model(family=family, options=options), 10, image_size)
    message = str(caught.value)
    assert message.startswith("model mine: its options (recipes/models.yaml): ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("family", "options", "image_size", "said"),
    [
        ("wrn", {"depth": 18, "width": 2}, 32, "depth is 6n + 4 (10, 16, 22, ...), got 18"),
        ("wrn", {"depth": 4, "width": 2}, 32, "depth is 6n + 4"),
        ("wrn", {"depth": 16, "width": 0}, 32, "width is a whole number from 1 up, got 0"),
        ("vgg", {"convolutions": [1, 1, 1, 1]}, 32, "convolutions are five numbers from 1 up"),
        ("vgg", {"convolutions": [1, 1, 0, 1, 1]}, 32, "got [1, 1, 0, 1, 1]"),
        ("vgg", {"convolutions": [1, 1, 1, 1, 1]}, 7, "images of 7 px; this family needs 8 or more"),
        ("mobilenetv2", {"expansion": 0, "width": 0.5}, 32, "expansion is a whole number from 1 up, got 0"),
        ("mobilenetv2", {"expansion": 6, "width": 0.25}, 32, "width is a number from 0.5 up, got 0.25"),
        ("mobilenetv2", {"expansion": 6, "width": float("nan")}, 32, "width is a number from 0.5 up, got nan"),
        ("mobilenetv2", {"expansion": 6, "width": 0.5}, 15, "images of 15 px; this family needs 16 or more"),
        ("shufflenetv2", {"widths": [116, 232, 464]}, 32, "widths are four even numbers from 16 up"),
        ("shufflenetv2", {"widths": [116, 232, 465, 1024]}, 32, "got [116, 232, 465, 1024]"),
        ("shufflenetv2", {"widths": [8, 16, 32, 64]}, 32, "from 16 up"),
        ("shufflenetv2", {"widths": [16, 16, 32, 64]}, 7, "images of 7 px; this family needs 8 or more"),
        ("bottleneck", {"blocks": [3, 4, 6]}, 32, "blocks are four numbers from 1 up"),
        ("bottleneck", {"blocks": [3, 4, 0, 3]}, 32, "got [3, 4, 0, 3]"),
        ("bottleneck", {"blocks": [1, 1, 1, 1]}, 7, "images of 7 px; this family needs 8 or more"),
        ("torchvision", {"name": "resnet33"}, 32, "no classification model 'resnet33'; names like it: resnet34"),
        ("torchvision", {"name": "fasterrcnn_resnet50_fpn"}, 32, "no classification model"),
        ("torchvision", {"name": "deeplabv3_resnet50"}, 32, "no classification model"),
        ("torchvision", {"name": "r3d_18"}, 32, "no classification model"),
        ("torchvision", {"name": "quantized_resnet18"}, 32, "no classification model"),
        ("torchvision", {"name": "resnet18", "weights": "DEFAULT"}, 32, "weights is no option"),
        ("torchvision", {"name": "resnet18", "num_classes": 3}, 32, "num_classes"),
        ("torchvision", {"name": "resnet18", "blub": 3}, 32, "unexpected keyword argument 'blub'"),
        ("torchvision", {"name": "vit_b_16"}, 30, "torchvision's vit_b_16: "),
        ("torchvision", {"name": "googlenet", "init_weights": False}, 32, "set aux_logits: false"),
    ],
)
def test_wrong_options_are_refused_in_one_line(family, options, image_size, said):
    assert said in _refusal(family, options, image_size)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("wrn", {"depth": 16}),
        ("wrn", {"depth": "16", "width": 2}),
        ("wrn", {"depth": 16, "width": 1.5}),
        ("vgg", {"convolutions": 2}),
        ("vgg", {"convolutions": [1, 1, 1, 1, "1"]}),
        ("vgg", {"convolutions": [1, 1, 1, 1, 1], "depth": 8}),
        ("mobilenetv2", {"expansion": 6.5, "width": 0.5}),
        ("mobilenetv2", {"expansion": 6, "width": None}),
        ("shufflenetv2", {"widths": "wide"}),
        ("shufflenetv2", {}),
        ("bottleneck", {"blocks": 50}),
        ("torchvision", {}),
        ("torchvision", {"name": 18}),
        ("timm", {}),
    ],
)
def test_options_of_another_type_are_refused_in_one_line(family, options):
    _refusal(family, options, 32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "resnet33"}, "timm has no model 'resnet33'; names like it: "),
        ({"name": "hf-hub:timm/resnet18.a1_in1k"}, "timm has no model"),
        ({"name": "resnet18", "pretrained": True}, "pretrained is no option"),
        ({"name": "resnet18", "checkpoint_path": "w.pt"}, "checkpoint_path is no option"),
        ({"name": "resnet18", "blub": 3}, "unexpected keyword argument 'blub'"),
    ],
)
def test_wrong_options_of_timm_are_refused_in_one_line(options, said):
    pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[timm]'")
    assert said in _refusal("timm", options, 32)


def test_what_is_the_dataset_s_is_no_option():
    with pytest.raises(
        UserError,
        match=r"model own: its options \(recipes/models.yaml\): num_classes is no option: it is the dataset's",
    ):
        create_model("own", Model(family="torchvision", options={"name": "resnet18", "num_classes": 3}), 10, 32)


def test_a_model_that_fails_at_an_image_size_is_refused_in_one_line():
    with pytest.raises(UserError, match="own: cannot take images of 32 px: ") as caught:
        output_shapes(Architecture(name="own", model=Model(family="torchvision", options={"name": "alexnet"})), 10, 32)
    assert "\n" not in str(caught.value)
