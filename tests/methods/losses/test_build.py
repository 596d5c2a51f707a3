"""The contract of all losses: built from shapes alone, weights from torch's seed, features only if it states so."""

import importlib

import pytest
import torch
from samples import CLASSES, call, outputs, teacher_outputs

from kdflow.config import ExtraLoss, base, choices
from kdflow.models.features import Outputs

LABELS = torch.arange(20) % CLASSES
LOSSES = {name: importlib.import_module(f"kdflow.methods.losses.{name}") for name in choices("losses")}
PER_IMAGE = [name for name in LOSSES if not ExtraLoss(name=name, weight=1.0).needs_batch]
OPTIONS = {"crd": {"negatives": 9}}  # its default is more than there are images


def _shapes(model_outputs):
    maps = tuple(m.to("meta") for m in model_outputs.maps)
    return Outputs(model_outputs.logits.to("meta"), maps, model_outputs.pooled.to("meta"))


def _build(name, seed=0):
    torch.manual_seed(seed)
    shapes = _shapes(outputs(2)), _shapes(teacher_outputs(2))
    return LOSSES[name].build(*shapes, LABELS, **OPTIONS.get(name, {}))


def _logits(model_outputs):
    return Outputs(model_outputs.logits, (), None)


@pytest.mark.parametrize("name", LOSSES)
def test_is_built_from_shapes_alone(name):
    loss = _build(name).to("cpu", memory_format=torch.channels_last)
    assert call(loss, outputs(4), teacher_outputs(4)).isfinite()
    assert all(tensor.device.type == "cpu" for tensor in loss.state_dict().values())


@pytest.mark.parametrize("name", LOSSES)
def test_weights_follow_the_seed(name):
    one, same, other = (_build(name, seed) for seed in (1, 1, 2))
    values = [call(loss, outputs(4), teacher_outputs(4)) for loss in (one, same, other)]
    assert torch.equal(values[0], values[1])
    assert (values[0] != values[2]) == (bool(one.state_dict()) and name != "ctkd")  # its parameter is 1 at first


@pytest.mark.parametrize("name", LOSSES)
def test_its_module_states_whether_it_needs_features(name):
    assert ExtraLoss(name=name, weight=1.0).needs_features == LOSSES[name].NEEDS_FEATURES
    if LOSSES[name].NEEDS_FEATURES:
        with pytest.raises(ValueError, match=r"recipes/models\.yaml"):
            LOSSES[name].build(_logits(outputs(2)), _logits(teacher_outputs(2)), LABELS, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("text", ["", "NEEDS_FEATURES = None", "NEEDS_FEATURES = 1", "def NEEDS_FEATURES(): ..."])
def test_a_module_that_does_not_state_it_is_refused(tmp_path, monkeypatch, text):
    folder = tmp_path / base.FOLDERS["losses"]
    folder.mkdir(parents=True)
    (folder / "silent.py").write_text(text)
    (folder / "plain.py").write_text('"""A loss."""\nimport missing_module\n\nNEEDS_FEATURES = False\n')
    monkeypatch.setattr(base, "PACKAGE", tmp_path)
    with pytest.raises(ValueError, match=r"kdflow/methods/losses/silent.py: must set NEEDS_FEATURES to True or False"):
        ExtraLoss(name="silent", weight=1.0)
    base.module_flag.cache_clear()
    assert not ExtraLoss(name="plain", weight=1.0).needs_features, "it is not imported"
    base.module_flag.cache_clear()


@pytest.mark.parametrize("name", PER_IMAGE)
def test_a_loss_that_needs_no_batch_is_a_mean_over_images(name):
    """Several processes compute it for their shares of a batch; shares may differ in size."""
    loss, student, teacher = _build(name).eval(), outputs(7), teacher_outputs(7)  # batch norm is that of all processes
    shares = [(0, 3), (3, 7)]
    parts = [call(loss, student.rows(*s), teacher.rows(*s), index=torch.arange(*s)).item() for s in shares]
    assert call(loss, student, teacher).item() == pytest.approx((3 * parts[0] + 4 * parts[1]) / 7, rel=1e-5)


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("name", ["cc", "pkt", "crd", "rkd", "srrl", "reviewkd"])
def test_refuses_a_model_without_pooled_feature(name, role):
    some, none = outputs(2), outputs(2, width=None)
    pair = (none, some) if role == "student" else (some, none)
    with pytest.raises(ValueError, match=f"{name} .* the {role} has none; .* head in recipes/models.yaml"):
        LOSSES[name].build(*pair, LABELS, **OPTIONS.get(name, {}))
