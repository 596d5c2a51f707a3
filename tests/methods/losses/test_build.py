"""What every loss keeps to: it is built from shapes alone, and its weights follow torch's seed."""

import pytest
import torch
from samples import call, outputs, teacher_outputs

from kdflow.config import choices
from kdflow.methods.losses import at, cc, crd, pkt, sp, vid
from kdflow.models.features import Outputs

LABELS = torch.arange(20) % 5
BUILDS = {
    "at": at.build,
    "sp": sp.build,
    "pkt": pkt.build,
    "cc": cc.build,
    "vid": vid.build,
    "crd": lambda *shapes: crd.build(*shapes, negatives=9),
}


def _shapes(said):
    return Outputs(said.logits.to("meta"), tuple(m.to("meta") for m in said.maps), said.pooled.to("meta"))


def _build(name, seed=0):
    torch.manual_seed(seed)
    return BUILDS[name](_shapes(outputs(2)), _shapes(teacher_outputs(2)), LABELS)


@pytest.mark.parametrize("name", BUILDS)
def test_is_built_from_shapes_alone(name):
    loss = _build(name).to("cpu", memory_format=torch.channels_last)
    assert call(loss, outputs(4), teacher_outputs(4)).isfinite()
    assert all(tensor.device.type == "cpu" for tensor in loss.state_dict().values())


@pytest.mark.parametrize("name", ["cc", "vid", "crd"])
def test_weights_follow_the_seed(name):
    one, same, other = (call(_build(name, seed), outputs(4), teacher_outputs(4)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert one != other


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("name", ["cc", "pkt", "crd"])
def test_refuses_a_model_without_pooled_feature(name, who):
    some, none = outputs(2), outputs(2, width=None)
    pair = (none, some) if who == "student" else (some, none)
    with pytest.raises(ValueError, match=f"{name} .* the {who} has none; .* head in recipes/models.yaml"):
        BUILDS[name](*pair, LABELS)


def test_every_loss_is_tested_here():
    assert set(BUILDS) == set(choices("losses"))
