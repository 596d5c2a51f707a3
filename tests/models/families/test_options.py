"""Options of models: those of torchvision and timm by name, and wrong ones, which are refused in one line."""

import sys

import pytest
import torch

from kdflow.config import Architecture, Model
from kdflow.core.errors import UserError
from kdflow.models import create_model
from kdflow.models.features import FeatureExtractor, output_shapes

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
    model = create_model("small", recipe, 5, 32).eval()
    x = torch.randn(2, 3, 32, 32)
    outputs = FeatureExtractor("small", model, recipe)(x)
    torch.testing.assert_close(outputs.logits, model(x), rtol=0, atol=0)
    assert outputs.logits.shape == (2, 5)
    assert [tuple(feature.shape[1:3]) for feature in outputs.maps] == shapes
    assert (None if outputs.pooled is None else outputs.pooled.shape[1]) == pooled


def test_torchvision_s_transformers_get_the_image_size():
    recipe = Model(family="torchvision", options={"name": "vit_b_16"})
    assert output_shapes(Architecture(name="small", model=recipe), 5, 48).logits.shape == (2, 5)


def test_timm_by_name():
    pytest.importorskip("timm", reason="timm is not installed: pip install 'kdflow[timm]'")
    options = {"name": "test_resnet", "drop_rate": 0.1}
    recipe = Model(family="timm", options=options, features=["layer1", "layer4"], head="fc")
    model = create_model("small", recipe, 5, 32).eval()
    outputs = FeatureExtractor("small", model, recipe)(torch.randn(2, 3, 32, 32))
    assert outputs.logits.shape == (2, 5)
    assert [feature.shape[0] for feature in outputs.maps] == [2, 2]
    assert outputs.pooled.shape[0] == 2


def test_missing_timm_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError) as caught:
        create_model("small", Model(family="timm", options={"name": "resnet18"}), 10, 32)
    assert str(caught.value).endswith("timm is not installed: pip install 'kdflow[timm]'")


# --- refusals ----------------------------------------------------------------------------------------------


def _refusal(family, options, image_size):
    with pytest.raises(UserError) as caught:
        create_model("small", Model(family=family, options=options), 10, image_size)
    message = str(caught.value)
    assert message.startswith("model small: options (recipes/models.yaml): ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("family", "options", "image_size", "message"),
    [
        ("wrn", {"depth": 18, "width": 2}, 32, "depth must be 6n + 4 (10, 16, 22, ...), got 18"),
        ("wrn", {"depth": 4, "width": 2}, 32, "depth must be 6n + 4"),
        ("wrn", {"depth": 16, "width": 0}, 32, "width must be an integer of at least 1, got 0"),
        ("vgg", {"convolutions": [1, 1, 1, 1]}, 32, "convolutions must be five integers of at least 1"),
        ("vgg", {"convolutions": [1, 1, 0, 1, 1]}, 32, "got [1, 1, 0, 1, 1]"),
        ("vgg", {"convolutions": [1, 1, 1, 1, 1]}, 7, "images of 7 px are too small, this family needs 8 or more"),
        ("mobilenetv2", {"expansion": 0, "width": 0.5}, 32, "expansion must be an integer of at least 1, got 0"),
        ("mobilenetv2", {"expansion": 6, "width": 0.25}, 32, "width must be a number from 0.5 to 100, got 0.25"),
        ("mobilenetv2", {"expansion": 6, "width": 101.0}, 32, "width must be a number from 0.5 to 100, got 101.0"),
        (
            "mobilenetv2",
            {"expansion": 6, "width": 0.5},
            15,
            "images of 15 px are too small, this family needs 16 or more",
        ),
        ("shufflenetv2", {"widths": [116, 232, 464]}, 32, "widths must be four even integers of at least 16"),
        ("shufflenetv2", {"widths": [116, 232, 465, 1024]}, 32, "got [116, 232, 465, 1024]"),
        ("shufflenetv2", {"widths": [8, 16, 32, 64]}, 32, "of at least 16"),
        ("shufflenetv2", {"widths": [16, 16, 32, 64]}, 7, "images of 7 px are too small, this family needs 8 or more"),
        ("bottleneck", {"blocks": [3, 4, 6]}, 32, "blocks must be four integers of at least 1"),
        ("bottleneck", {"blocks": [3, 4, 0, 3]}, 32, "got [3, 4, 0, 3]"),
        ("bottleneck", {"blocks": [1, 1, 1, 1]}, 7, "images of 7 px are too small, this family needs 8 or more"),
        ("torchvision", {"name": "resnet33"}, 32, "no classification model 'resnet33'; similar names: resnet34"),
        ("torchvision", {"name": "fasterrcnn_resnet50_fpn"}, 32, "no classification model"),
        ("torchvision", {"name": "deeplabv3_resnet50"}, 32, "no classification model"),
        ("torchvision", {"name": "r3d_18"}, 32, "no classification model"),
        ("torchvision", {"name": "quantized_resnet18"}, 32, "no classification model"),
        ("torchvision", {"name": "resnet18", "weights": "DEFAULT"}, 32, "weights is not allowed"),
        ("torchvision", {"name": "resnet18", "num_classes": 3}, 32, "num_classes"),
        ("torchvision", {"name": "resnet18", "blub": 3}, 32, "unexpected keyword argument 'blub'"),
        ("torchvision", {"name": "vit_b_16"}, 30, "torchvision's vit_b_16: "),
        ("torchvision", {"name": "googlenet", "aux_logits": True}, 32, "aux_logits must be false"),
    ],
)
def test_wrong_options_are_refused_in_one_line(family, options, image_size, message):
    assert message in _refusal(family, options, image_size)


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
    ("options", "message"),
    [
        ({"name": "resnet33"}, "timm has no model 'resnet33'; similar names: "),
        ({"name": "hf-hub:timm/resnet18.a1_in1k"}, "timm has no model"),
        ({"name": "resnet18", "pretrained": True}, "pretrained is not allowed"),
        ({"name": "resnet18", "checkpoint_path": "w.pt"}, "checkpoint_path is not allowed"),
        ({"name": "resnet18", "blub": 3}, "unexpected keyword argument 'blub'"),
    ],
)
def test_wrong_options_of_timm_are_refused_in_one_line(options, message):
    pytest.importorskip("timm", reason="timm is not installed: pip install 'kdflow[timm]'")
    assert message in _refusal("timm", options, 32)


def test_options_that_the_dataset_sets_are_refused():
    message = r"model small: options \(recipes/models.yaml\): num_classes is set by the dataset"
    with pytest.raises(UserError, match=message):
        create_model("small", Model(family="torchvision", options={"name": "resnet18", "num_classes": 3}), 10, 32)


def test_a_model_that_fails_at_an_image_size_is_refused_in_one_line():
    with pytest.raises(UserError, match="small: does not accept images of 32 px: ") as caught:
        output_shapes(
            Architecture(name="small", model=Model(family="torchvision", options={"name": "alexnet"})), 10, 32
        )
    assert "\n" not in str(caught.value)
