"""Every family: gradients at several image sizes, a second implementation of its forward pass, initial weights."""

import math

import pytest
import torch
from paths import ROOT
from torch import nn
from torch.nn import functional as F

from kdflow import config
from kdflow.config import Architecture, Model
from kdflow.models import create_model
from kdflow.models.features import output_shapes

RECIPES = config.load(ROOT).models
ONE_OF_EACH_FAMILY = ["resnet8", "wrn_16_2", "vgg8", "mobilenetv2", "shufflenetv2", "resnet50", "resnet18"]
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
    "name", [pytest.param(name, marks=() if name in ONE_OF_EACH_FAMILY else pytest.mark.slow) for name in RECIPES]
)
def test_every_recipe_has_finite_gradients_at_other_sizes(name, image_size):
    _check_gradients(_model(name, 3, image_size), image_size, 3)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_four_maps_or_more_and_its_classifier(name):
    outputs = output_shapes(Architecture(name=name, model=RECIPES[name]), 11, 96)
    assert outputs.logits.shape == (2, 11)
    assert len(outputs.maps) >= 4
    assert all(feature.ndim == 4 for feature in outputs.maps)
    assert outputs.pooled is not None
    assert outputs.pooled.ndim == 2


# --- a second implementation -------------------------------------------------------------------------------


class Network:
    """The layers of a model as functions of its state dict; a depthwise convolution is a sum over patches."""

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
        if isinstance(module, nn.BatchNorm2d):  # whose initial values are all 0 and 1
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
            module.momentum = 1.0
    with torch.no_grad():
        model(earlier)  # for running statistics that let the signal through
        model.train(training)
        expected = second(Network(model), x)
        assert (expected - expected.mean(0)).std() > 1e-4, "logits must depend on the image"
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


# --- initial weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wrn_16_2", "vgg8", "mobilenetv2", "small bottleneck"])
def test_convolutions_are_initialised_as_he_et_al_2015_and_batch_norms_as_identity(name):
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
def test_the_classifiers_of_vgg_and_mobilenetv2_have_small_initial_weights(name, head):
    linear = _model(name, 100).get_submodule(head)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not linear.bias.any()


def test_the_classifier_of_a_wide_resnet_has_zero_initial_bias():
    fc = _model("wrn_16_2", 100).fc
    assert not fc.bias.any()
    assert fc.weight.abs().max().item() == pytest.approx(1 / math.sqrt(128), rel=0.01)


def test_shufflenetv2_has_torch_s_initial_weights():
    for module in _model("shufflenetv2", 100).modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 2000:
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert module.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("name", ["mobilenetv2", "shufflenetv2"])
def test_narrow_and_depthwise_convolutions_have_right_gradients_in_channels_last(name):
    """torch 2.14 corrupts memory in some backward passes of this layout; these models must not have them."""
    shapes = set()
    with torch.device("meta"):
        model = create_model(name, RECIPES[name], 10, 32)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(
                    lambda m, x: shapes.add(
                        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.groups, x[0].shape[2])
                    )
                )
        model(torch.zeros(2, 3, 32, 32))
    assert len(shapes) > 10
    torch.manual_seed(0)
    for width_in, width, kernel, stride, groups, size in sorted(shapes):
        x, weight = torch.randn(2, width_in, size, size), torch.randn(width, width_in // groups, kernel, kernel)
        gradients = []
        for layout in (torch.contiguous_format, torch.channels_last):
            leaves = [t.clone(memory_format=layout).requires_grad_() for t in (x, weight)]
            y = F.conv2d(*leaves, None, stride, kernel // 2, groups=groups)
            y.backward(torch.cos(y.detach()))
            gradients.append([leaf.grad for leaf in leaves])
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
