"""A small model and checkpoints of it in the formats of other projects."""

import re
from collections import OrderedDict

import torch

from kdflow.config import Model
from kdflow.models import create_model

SMALL = Model(family="resnet", options={"depth": 8, "widths": [16, 16, 32, 32]})
CLASSES = 4


def model_of(recipe=SMALL, classes=CLASSES, seed=0, **options):
    """Return a model whose running statistics differ from the initial ones."""
    torch.manual_seed(seed)
    recipe = recipe.model_copy(update={"options": {**recipe.options, **options}})
    model = create_model("small", recipe, classes, 8)
    for name, value in model.state_dict().items():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    return model.eval()


def logits_of(model):
    """Return the model's logits of four fixed images."""
    torch.manual_seed(7)
    with torch.no_grad():
        return model.eval()(torch.randn(4, 3, 8, 8))


ORIGIN = model_of()
STATE = ORIGIN.state_dict()
LOGITS = logits_of(ORIGIN)


def renamed(*rules, state=STATE):
    """Return the state with other names; `rules` are pairs of pattern and replacement."""
    names = {key: key for key in state}
    for pattern, replacement in rules:
        names = {key: re.sub(pattern, replacement, name) for key, name in names.items()}
    assert len(set(names.values())) == len(names)
    return OrderedDict((names[key], value.clone()) for key, value in state.items())


KUANGLIU = renamed((r"^fc\.", "linear."), (r"downsample", "shortcut"))


def with_one(key, value):
    """Return the state with another value of one weight."""
    return {**STATE, key: value}
