"""Features of named layers: their values and gradients, and that no tensor is kept."""

import weakref

import pytest
import torch
from torch.nn import functional as F

from kdflow.config import Architecture, Model
from kdflow.core.errors import UserError
from kdflow.models import create_model
from kdflow.models.features import FeatureExtractor, output_shapes

LAYERS = ("relu", "layer1", "layer2.0.bn1", "layer3")


def _recipe(features=LAYERS, head="fc"):
    options = {"depth": 8, "widths": [8, 8, 12, 16]}
    return Model(family="resnet", options=options, features=features, head=head)


def _extractor(features=LAYERS, head="fc"):
    recipe = _recipe(features, head)
    torch.manual_seed(0)
    return FeatureExtractor("small", create_model("small", recipe, 5, 16), recipe)


def _images(n=4):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_features_are_those_computed_by_hand(training):
    extractor, x = _extractor(), _images()
    net = extractor.model.train(training)
    outputs = extractor(x)
    stem = F.relu(net.bn1(net.conv1(x)))
    first = net.layer1(stem)
    inner = net.layer2[0].bn1(net.layer2[0].conv1(first))
    last = net.layer3(net.layer2(first))
    pooled = last.mean((2, 3))
    for found, expected in zip(outputs.maps, (stem, first, inner, last), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(outputs.pooled, pooled, rtol=0, atol=0)
    torch.testing.assert_close(outputs.logits, pooled @ net.fc.weight.T + net.fc.bias)
    torch.testing.assert_close(outputs.logits, net(x), rtol=0, atol=0)


def test_without_named_layers_there_are_logits_only():
    outputs = _extractor((), None)(_images())
    assert outputs.logits.shape == (4, 5)
    assert outputs.maps == ()
    assert outputs.pooled is None


def test_the_order_is_that_of_the_recipe():
    outputs = _extractor(("layer3", "layer1"))(_images())
    assert [feature.shape[1] for feature in outputs.maps] == [16, 8]


@pytest.mark.parametrize(
    ("features", "head", "named"),
    [(("relu", "layer9"), "fc", "small.features: .*'layer9'"), (("relu",), "classifier", "small.head: .*'classifier'")],
)
def test_an_unknown_layer_is_refused(features, head, named):
    with pytest.raises(UserError, match=named):
        _extractor(features, head)


def test_gradients_flow_through_every_feature():
    extractor = _extractor()
    for at in range(len(LAYERS) + 1):
        extractor.model.zero_grad()
        outputs = extractor(_images())
        (*outputs.maps, outputs.pooled)[at].square().sum().backward()
        gradient = extractor.model.conv1.weight.grad
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_nothing_is_kept_after_the_call():
    extractor = _extractor()
    outputs = extractor(_images())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in extractor.model.modules())
    alive = [weakref.ref(feature) for feature in (*outputs.maps, outputs.pooled, outputs.logits)]
    del outputs
    assert [reference() for reference in alive] == [None] * 6


def test_nothing_is_kept_after_a_failed_call():
    extractor = _extractor()
    with pytest.raises(RuntimeError):
        extractor(torch.zeros(2, 3, 0, 0))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in extractor.model.modules())


def test_passes_of_the_plain_model_keep_nothing():
    extractor = _extractor()
    kept = []
    extractor.model.layer1.register_forward_hook(lambda _layer, _inputs, output: kept.append(weakref.ref(output)))
    extractor.model(_images())
    assert [reference() for reference in kept] == [None]


def test_rows_are_a_slice_of_all_outputs():
    outputs = _extractor()(_images(4))
    some = outputs.rows(1, 3)
    for found, all_of_them in zip(
        (some.logits, *some.maps, some.pooled), (outputs.logits, *outputs.maps, outputs.pooled), strict=True
    ):
        assert torch.equal(found, all_of_them[1:3])
    assert _extractor((), None)(_images()).rows(0, 1).pooled is None


def test_output_shapes_have_no_values():
    outputs = output_shapes(Architecture(name="small", model=_recipe()), 5, 16)
    assert outputs.logits.shape == (2, 5)
    assert [feature.shape[2] for feature in outputs.maps] == [16, 16, 8, 4]
    assert all(feature.device.type == "meta" for feature in outputs.maps)


def test_an_image_that_is_too_small_for_a_model_is_refused_in_one_line():
    recipe = Model(family="torchvision", options={"name": "alexnet"})
    with pytest.raises(UserError, match="small: does not accept images of 16 px") as caught:
        output_shapes(Architecture(name="small", model=recipe), 5, 16)
    assert "\n" not in str(caught.value)
