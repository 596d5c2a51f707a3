"""Ensembles: their logits compared with a slow version in float64, equal members, passes as of any model, refusals."""

import math
from pathlib import Path

import pytest
import torch
from paths import ROOT
from settings_files import GONE, MODELS, copy_settings, edit
from torch import nn

from kdflow import config
from kdflow.config import Model
from kdflow.config.method import resolve_ensembles
from kdflow.core.errors import UserError
from kdflow.models import create_model
from kdflow.models.cost import count_cost
from kdflow.models.families.ensemble import Ensemble, combine_logits
from kdflow.models.precision import fold_batch_norm, make_forward

RECIPES = config.load(ROOT).models
NARROW = Model(family="resnet", options={"depth": 8, "widths": [16, 16, 32, 32]})


def pair(**options: object) -> Model:
    entry = Model(family="ensemble", options={"members": ["resnet8", "narrow"], **options})
    return resolve_ensembles({**RECIPES, "narrow": NARROW, "pair": entry}, Path("models.yaml"), [])["pair"]


def slow_logits(logits, combine, temperature):
    """Combine logits one number at a time."""
    k, b, classes = logits.shape
    result = torch.zeros(b, classes, dtype=torch.float64)
    for i in range(b):
        sums = [math.log(sum(math.exp(z / temperature) for z in logits[m, i].tolist())) for m in range(k)]
        for c in range(classes):
            z = logits[:, i, c].tolist()
            if combine == "logits":
                result[i, c] = sum(z) / k
            else:
                p = sum(math.exp(z[m] / temperature - sums[m]) for m in range(k)) / k
                result[i, c] = temperature * (math.log(p) + sum(sums) / k)
    return result


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_logits_are_those_of_a_slow_version(combine, temperature):
    logits = 5 * torch.randn(3, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = slow_logits(logits, combine, temperature)
    torch.testing.assert_close(combine_logits(logits, combine, temperature), expected, rtol=1e-12, atol=1e-12)


def test_the_softmax_is_the_mean_of_the_members():
    """Hand values at T = 2: softmax of (2 log 3, 0) is (3/4, 1/4), of (0, 2 log 7) it is (1/8, 7/8)."""
    logits = torch.tensor([[[2 * math.log(3), 0.0]], [[0.0, 2 * math.log(7)]]], dtype=torch.float64)
    combined = (combine_logits(logits, "probabilities", 2.0) / 2).softmax(1)
    torch.testing.assert_close(combined, torch.tensor([[7 / 16, 9 / 16]], dtype=torch.float64))
    geometric = (combine_logits(logits, "logits", 2.0) / 2).softmax(1)
    ratio = math.sqrt(3 / 7)
    torch.testing.assert_close(geometric[0, 0] / geometric[0, 1], torch.tensor(ratio, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_equal_members_have_the_logits_of_one(combine, scale):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    x = scale * torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(Ensemble([model, model, model], combine)(x), model(x), rtol=1e-5, atol=1e-4)


def test_folding_and_lower_precision_are_those_of_any_model():
    torch.manual_seed(0)
    recipe = pair()
    model = create_model("pair", recipe, 5, 16).eval().requires_grad_(False)
    x = torch.randn(4, 3, 16, 16)
    folded = fold_batch_norm("pair", model, 16)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-3)
    low = make_forward(model, "bfloat16", "none")(x)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, model(x), rtol=0.1, atol=0.1)


def test_the_cost_is_the_sum_of_the_members():
    costs = [count_cost(create_model("one", recipe, 10, 32), 32) for recipe in (RECIPES["resnet8"], NARROW)]
    total = count_cost(create_model("pair", pair(), 10, 32), 32)
    assert (total.params, total.flops) == (sum(c.params for c in costs), sum(c.flops for c in costs))


# --- recipes and refusals ----------------------------------------------------------------------------------


def test_members_are_experiments_with_the_seeds_of_their_names(tmp_path):
    edit(
        copy_settings(tmp_path),
        MODELS,
        {"three": {"family": "ensemble", "options": {"members": ["resnet8", "resnet14", "resnet8"]}}},
    )
    edit(tmp_path, "params.yaml", {"teacher": "three"})
    experiment = config.load(tmp_path)
    members = experiment.members()
    assert [(one.params.teacher, seed) for one, seed in members] == [("resnet8", 0), ("resnet14", 0), ("resnet8", 1)]
    assert experiment.models["three"].members == ("resnet8", "resnet14", "resnet8")
    alone = experiment.model_copy(update={"params": experiment.params.model_copy(update={"teacher": "resnet8"})})
    assert members[0][0].teacher_run(0) == alone.teacher_run()
    assert alone.members() == []


EMPTY = {"file": None, "sha256": None, "top1": None}


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"members": ["resnet8"]}, {}, "pair.options.members: must be a list of 2 to 64 models"),
        ({}, {}, "pair.options.members: must be a list of 2 to 64 models"),
        ({"members": ["resnet8", "resnet9"]}, {}, "pair.options.members: unknown name 'resnet9'; did you mean"),
        ({"members": ["resnet8", "pair"]}, {}, "pair.options.members: pair is an ensemble too"),
        ({"members": ["resnet8", 3]}, {}, "pair.options.members: unknown name 3"),
        (None, {"methods": ["kd", "at"]}, "methods: at needs features of the teacher, and pair is an ensemble"),
        (None, {"methods": ["srrl"]}, "methods: srrl needs features of the teacher, and pair is an ensemble"),
        (None, {"teacher_init": "ResNet18_Weights.DEFAULT"}, "teacher_init: is for one model, and pair is an ensemble"),
        (None, {"teacher_weights": {"file": "w", "sha256": "0" * 64, "top1": 1.0}}, "pair is an ensemble; list a file"),
        (
            None,
            {"teacher_weights": {**EMPTY, "members": [EMPTY]}},
            "teacher_weights.members: 1 listed, pair has 2 members",
        ),
        (None, {"teacher_weights": {**EMPTY, "members": [{**EMPTY, "file": "w"}, EMPTY]}}, "must be given together"),
        (
            None,
            {"teacher": "resnet8", "teacher_weights": {**EMPTY, "members": [EMPTY]}},
            "teacher_weights.members: resnet8 is no ensemble",
        ),
    ],
)
def test_refusals(tmp_path, options, changes, message):
    options = {"members": ["resnet8", "resnet8"]} if options is None else options
    edit(copy_settings(tmp_path), MODELS, {"pair": {"family": "ensemble", "options": options}})
    edit(tmp_path, "params.yaml", {"teacher": "pair", **changes})
    with pytest.raises(UserError) as caught:
        config.load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "votes"}, "combine: must be probabilities or logits, not 'votes'"),
        ({"temperature": 0.0}, "temperature: must be from 0.01 to 1000, not 0.0"),
        ({"weights": [1, 2]}, "unexpected keyword argument 'weights'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        create_model("pair", pair(**options), 5, 16)


def test_an_ensemble_has_no_layers(tmp_path):
    entry = {"family": "ensemble", "options": {"members": ["resnet8", "resnet8"]}, "head": "members.0.fc"}
    edit(copy_settings(tmp_path), MODELS, {"pair": entry, "resnet9": GONE})
    with pytest.raises(UserError, match=r"pair\.head: an ensemble has only logits"):
        config.load(tmp_path)
