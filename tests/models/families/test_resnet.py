"""ResNets: the published numbers of parameters, and the forward pass of a second implementation."""

import pytest
import torch
from paths import ROOT
from torch.nn import functional as F

from kdflow import config
from kdflow.config import Model
from kdflow.core.errors import UserError
from kdflow.models import create_model

RECIPES = config.load(ROOT).models


def _model(depth: int, widths: list[int], classes: int = 10) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model("small", Model(family="resnet", options={"depth": depth, "widths": widths}), classes, 16)


def _parameters(depth: int, widths: list[int], classes: int) -> int:
    """Count convolutions without bias, two values per batch norm channel, and the 1x1 shortcuts."""
    total = 3 * 9 * widths[0] + 2 * widths[0]
    for stage in (1, 2, 3):
        before, width = widths[stage - 1], widths[stage]
        for block in range((depth - 2) // 6):
            entering = before if block == 0 else width
            total += 9 * entering * width + 2 * width + 9 * width * width + 2 * width
            if block == 0 and (stage > 1 or before != width):
                total += before * width + 2 * width
    return total + widths[3] * classes + classes


@pytest.mark.parametrize(
    ("name", "widths", "published"),
    [
        ("resnet20", [16, 16, 32, 64], 278_324),  # CRD's teachers and students: 0.28 M, 0.86 M, 1.23 M
        ("resnet56", [16, 16, 32, 64], 861_620),
        ("resnet8x4", [32, 64, 128, 256], 1_233_540),
    ],
)
def test_number_of_parameters(name, widths, published):
    recipe = RECIPES[name]
    found = sum(parameter.numel() for parameter in create_model(name, recipe, 100, 32).parameters())
    assert found == _parameters(recipe.options["depth"], widths, 100) == published


def _reference_forward(state: dict[str, torch.Tensor], x: torch.Tensor, depth: int) -> torch.Tensor:
    """Compute the logits of the network in eval mode from its state dict."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = norm("bn1", F.conv2d(x, state["conv1.weight"], padding=1)).clamp(min=0)
    for stage in (1, 2, 3):
        for block in range((depth - 2) // 6):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = norm(f"{at}.bn1", F.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1)).clamp(min=0)
            y = norm(f"{at}.bn2", F.conv2d(y, state[f"{at}.conv2.weight"], padding=1))
            if f"{at}.downsample.0.weight" in state:
                x = norm(f"{at}.downsample.1", F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride))
            x = (x + y).clamp(min=0)
    pooled = x.flatten(2).sum(2) / (x.shape[2] * x.shape[3])
    return pooled @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(("depth", "widths"), [(8, [8, 10, 12, 14]), (14, [8, 8, 12, 16])])
def test_forward_equals_a_second_implementation(depth, widths):
    model = _model(depth, widths).double().eval()
    generator = torch.Generator().manual_seed(1)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(noise + 0.5 if key.endswith("var") else noise - 0.4)
    x = torch.randn(3, 3, 16, 16, generator=generator, dtype=torch.float64)
    expected = _reference_forward(model.state_dict(), x, depth)
    assert expected.std() > 0.01
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_any_image_size_gives_logits_and_finite_gradients(size):
    model = _model(8, [16, 16, 32, 64], classes=7)
    logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_convolutions_are_initialised_as_he_et_al_2015():
    model = _model(20, [16, 16, 32, 64])
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 2000:
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 9, "widths": [16, 16, 32, 64]},
        {"depth": 2, "widths": [16, 16, 32, 64]},
        {"depth": -4, "widths": [16, 16, 32, 64]},
        {"depth": 8, "widths": [16, 32, 64]},
        {"depth": 8, "widths": [16, 16, 32, 64, 128]},
        {"depth": 8, "widths": [16, 16, 32, -64]},
        {"depth": 8, "widths": [16, 16, 0, 64]},
        {"depth": 8},
        {"depth": 8, "widths": [16, 16, 32, 64], "width": 3},
    ],
)
def test_wrong_options_are_refused_in_one_line(options):
    with pytest.raises(UserError) as caught:
        create_model("small", Model(family="resnet", options=options), 10, 16)
    message = str(caught.value)
    assert message.startswith("model small: options (recipes/models.yaml): ")
    assert "\n" not in message
