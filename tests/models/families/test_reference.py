"""CRD's models: the same parameter names in the same order, shapes and feature shapes, so that its weights load."""

import json
import os
from pathlib import Path

import pytest
import torch
from paths import ROOT

from kdflow import config
from kdflow.models import create_model
from kdflow.models.features import FeatureExtractor

RECIPES = config.load(ROOT).models
RESNETS = ("resnet20", "resnet56", "resnet110", "resnet8x4", "resnet32x4", "resnet50")
MODELS = (*RESNETS, "wrn_16_2", "wrn_40_2", "vgg8", "vgg13", "mobilenetv2", "shufflenetv2")


@pytest.fixture(scope="module")
def reference():
    given = os.environ.get("KDFLOW_REFERENCE_MODELS")
    if given is None or not Path(given).is_file():
        pytest.skip("KDFLOW_REFERENCE_MODELS is not set or no file: it names the JSON of CRD's models")
    return json.loads(Path(given).read_text())


def _shapes_only(name, image_size):
    with torch.device("meta"):
        return create_model(name, RECIPES[name], 100, image_size)


def test_every_model_of_the_reference_is_compared(reference):
    assert sorted(reference) == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_those_of_the_reference(name, reference):
    expected = reference[name]["state_dict"]
    model = _shapes_only(name, 32)
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert found == expected
    assert list(found) == list(expected)
    model.load_state_dict({key: torch.empty(shape, device="meta") for key, shape in expected.items()}, strict=True)


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("name", MODELS)
def test_features_have_the_shapes_of_the_reference(name, image_size, reference):
    extractor = FeatureExtractor(name, _shapes_only(name, image_size), RECIPES[name])
    outputs = extractor(torch.zeros(2, 3, image_size, image_size, device="meta"))
    found = [list(feature.shape[1:]) for feature in (*outputs.maps, outputs.pooled)]
    assert found == reference[name][f"feature_shapes_{image_size}"]
    assert outputs.logits.shape == (2, 100)
