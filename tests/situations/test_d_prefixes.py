"""Weights of a model that is a part of a larger module, with other tensors beside it."""

import pytest
import torch
from checkpoints import KUANGLIU, LOGITS, STATE, logits_of, model_of

from kdflow.core.errors import UserError
from kdflow.models import convert_weights

WEIGHTS = len(STATE)
OTHER = model_of(seed=4).state_dict()
SMALLER = model_of(classes=3).state_dict()


def prefixed(prefix, state=STATE):
    return {f"{prefix}{key}": value for key, value in state.items()}


def head(name, state=STATE):
    """Return the state with another name of the classifier."""
    return {key.replace("fc.", name): value for key, value in state.items()}


def loaded(content, file):
    torch.save(content, file)
    model = model_of(seed=1)
    return convert_weights.load_any_format(model, file), logits_of(model)


@pytest.mark.parametrize("prefix", ["_model.", "classifier.", "student_model.", "any.of.them."])
@pytest.mark.parametrize(
    ("beside", "step"),
    [
        ({}, ""),
        ({"criterion.weight": torch.ones(4)}, "; 'criterion' ignored (1)"),
        ({"loss.a": torch.ones(4), "loss.b.c": torch.ones(1), "scale": torch.ones(2)}, "; 'loss' ignored (2); 'scale'"),
        (prefixed("teacher_model.", SMALLER), f"; 'teacher_model' ignored ({WEIGHTS})"),
    ],
)
def test_the_only_prefix_that_fits_is_removed_and_the_rest_is_listed(prefix, beside, step, tmp_path):
    for content in ({**prefixed(prefix), **beside}, {**beside, **prefixed(prefix)}):
        conversion, logits = loaded({"state_dict": content, "epoch": 3}, tmp_path / "w")
        assert torch.equal(logits, LOGITS)
        assert f"'state_dict' used ({WEIGHTS}); '{prefix}' removed ({WEIGHTS}){step}" in conversion.summary
        assert (f"{prefix}conv1.weight", "conv1.weight") in conversion.names


def test_a_moving_average_beside_the_model_is_ignored(tmp_path):
    conversion, logits = loaded({**prefixed("ema_model.", OTHER), **prefixed("model.")}, tmp_path / "w")
    assert torch.equal(logits, LOGITS)
    assert conversion.summary == f"'ema_model.' also fits, ignored ({WEIGHTS}); 'model.' removed ({WEIGHTS})"


def test_a_prefix_and_other_names_of_layers_together(tmp_path):
    conversion, logits = loaded({**prefixed("net.", KUANGLIU), "criterion.weight": torch.ones(4)}, tmp_path / "w")
    assert torch.equal(logits, LOGITS)
    assert "'net.' removed" in conversion.summary
    assert "shortcut -> downsample" in conversion.summary


def test_two_prefixes_that_fit_are_refused_and_named(tmp_path):
    with pytest.raises(UserError, match=r"several sets of weights fit: 'a\.student\.', 'a\.teacher\.'; save"):
        loaded({"a": {**prefixed("student."), **prefixed("teacher.", OTHER)}}, tmp_path / "w")


def test_the_reason_is_that_of_the_prefix_that_almost_fits(tmp_path):
    beside = {"criterion.weight": torch.ones(4)}
    with pytest.raises(UserError, match=r"architecture \(of '_model.' in it\): 3 classes instead of 4$"):
        loaded({**prefixed("_model.", SMALLER), **beside}, tmp_path / "w")
    state = {key: value for key, value in STATE.items() if key != "bn1.bias"}
    with pytest.raises(UserError, match=r"architecture \(of '_model.' in it\): bn1.bias is missing$"):
        loaded({**prefixed("_model.", state), **beside}, tmp_path / "w")


def test_other_tensors_without_a_prefix_are_still_refused(tmp_path):
    with pytest.raises(UserError, match=r"architecture: criterion.weight is unknown$"):
        loaded({**STATE, "criterion.weight": torch.ones(4)}, tmp_path / "w")


@pytest.mark.parametrize(
    ("prefix", "name", "step"),
    [
        ("", "fc.1.", "fc.N -> fc (2)"),
        ("", "classifier.0.", "classifier.N -> fc (2)"),
        ("", "head.fc.2.", "head.fc.N -> fc (2)"),
        ("model.", "linear.1.", f"'model.' removed ({WEIGHTS}); linear.N -> fc (2)"),
    ],
)
def test_a_classifier_after_dropout_in_a_sequence_is_taken(prefix, name, step, tmp_path):
    conversion, logits = loaded(prefixed(prefix, head(name)), tmp_path / "w")
    assert torch.equal(logits, LOGITS)
    assert conversion.summary == step


def test_two_layers_of_a_classifier_are_refused_and_named(tmp_path):
    content = {**head("fc.3."), "fc.1.weight": torch.ones(4, 32), "fc.1.bias": torch.ones(4)}
    with pytest.raises(UserError, match=r"two of its weights are fc.weight: fc.3.weight and fc.1.weight"):
        loaded(content, tmp_path / "w")
