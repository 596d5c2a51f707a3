"""Models of torchvision and timm by name: each works, or is refused in one true line."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from kdflow.config import Architecture, Model
from kdflow.core.errors import UserError
from kdflow.models import create_model, create_model_on_meta
from kdflow.models.cost import count_cost
from kdflow.models.families import vgg
from kdflow.models.features import output_shapes

NAMES = torchvision.models.list_models(module=torchvision.models)
LONG = (pytest.mark.slow, pytest.mark.long)
FAST = [
    "googlenet",
    "inception_v3",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "squeezenet1_1",
    "vgg11",
    "vit_b_16",
]
TOO_SMALL = {  # at 32 px
    "alexnet": "Output size is too small",
    "inception_v3": "Kernel size can't be greater than actual input size",
    "maxvit_t": "[Ii]nput size",
    "vit_h_14": "Input shape indivisible by patch size!",
}
MAX_TRAINED = 30e6  # parameters of the largest model that is trained


def _recipe(name, family="torchvision"):
    return Model(family=family, options={"name": name})


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else LONG) for name in NAMES])
def test_every_classification_model_of_torchvision_works_or_is_one_true_line(name):
    architecture = Architecture(name=name, model=_recipe(name))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert output_shapes(architecture, 7, 224).logits.shape == (2, 7)
    model = create_model_on_meta(name, architecture.model, 7, 224)
    assert {value.device.type for value in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert torch.equal(torch.get_rng_state(), before), "shapes draw no random numbers of the run"
    assert count_cost(model, 224).params > 10_000
    if name in TOO_SMALL:
        with pytest.raises(UserError, match=f"model {name}: .*{TOO_SMALL[name]}") as caught:
            output_shapes(architecture, 7, 32)
        assert "\n" not in str(caught.value)
    else:
        assert output_shapes(architecture, 7, 32).logits.shape == (2, 7)


def test_torchvision_has_80_classification_models():
    assert len(NAMES) >= 80


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("name", NAMES)
def test_every_small_model_of_torchvision_takes_a_training_step(name):
    on_meta = create_model_on_meta(name, _recipe(name), 7, 224)
    if sum(parameter.numel() for parameter in on_meta.parameters()) > MAX_TRAINED:
        pytest.skip("large")
    size = 96 if name == "inception_v3" else 224 if name == "maxvit_t" else 64
    torch.manual_seed(0)
    model = create_model(name, _recipe(name), 7, size).train()
    logits = model(torch.randn(2, 3, size, size))
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert logits.shape == (2, 7)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t"])
def test_a_model_on_the_meta_device_has_the_shapes_of_the_real_one(name):
    real, on_meta = create_model(name, _recipe(name), 7, 64), create_model_on_meta(name, _recipe(name), 7, 64)
    assert {key: value.shape for key, value in real.state_dict().items()} == {
        key: value.shape for key, value in on_meta.state_dict().items()
    }


def test_a_model_that_calls_its_layers_while_it_is_created_is_created_on_the_meta_device(monkeypatch):
    class Probing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
            width = int((torch.arange(4) * 2.5).tolist()[-1])  # values of tensors, as in RegNet
            shape = torch.cat([self.body(torch.zeros(1, 3, width, width)), torch.zeros(1, 8, 5, 5)]).shape
            self.head = nn.Linear(shape[1] * shape[2] * shape[3], 7)

    monkeypatch.setattr(vgg, "build", lambda num_classes, image_size: Probing())
    model = create_model_on_meta("x", Model(family="vgg"), 7, 32)
    assert model.head.weight.shape == (7, 200) and model.head.weight.is_meta


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_with_auxiliary_classifiers_return_logits_in_training(name):
    model = create_model_on_meta(name, _recipe(name), 7, 224).train()
    assert model(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, 7)


# --- timm --------------------------------------------------------------------------------------------------


def _timm_names():
    """Return the first model of each module of timm."""
    try:
        import timm
    except ImportError:
        return ["not installed"]
    return [names[0] for module in timm.list_modules() if (names := timm.list_models(module=module))]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", _timm_names())
def test_a_model_of_every_module_of_timm_works_or_is_one_line(name):
    pytest.importorskip("timm", reason="timm is not installed: pip install 'kdflow[timm]'")
    for size in (64, 256):
        try:
            outputs = output_shapes(Architecture(name=name, model=_recipe(name, "timm")), 7, size)
        except UserError as error:
            assert "\n" not in str(error)
            assert "meta" not in str(error)
            continue
        assert outputs.logits.shape == (2, 7)
        count_cost(create_model_on_meta(name, _recipe(name, "timm"), 7, size), size)


def test_the_image_size_is_passed_to_timm_s_vision_transformers_and_not_to_networks_of_any_size():
    pytest.importorskip("timm", reason="timm is not installed: pip install 'kdflow[timm]'")
    for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet10t", "efficientnet_b0"):
        assert output_shapes(Architecture(name=name, model=_recipe(name, "timm")), 7, 64).logits.shape == (2, 7)


def test_passing_the_image_size_to_timm_changes_no_initial_weight():
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'kdflow[timm]'")
    for name, size in (("resnet10t", 64), ("vit_tiny_patch16_224", 224)):
        torch.manual_seed(3)
        expected = copy.deepcopy(timm.create_model(name, num_classes=7).state_dict())
        torch.manual_seed(3)
        found = create_model(name, _recipe(name, "timm"), 7, size).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
