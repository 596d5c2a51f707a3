"""A copy of params.yaml and recipes/ that tests edit."""

import shutil

from paths import ROOT
from ruamel.yaml import YAML

DATASETS, MODELS, METHODS = "recipes/datasets.yaml", "recipes/models.yaml", "recipes/methods.yaml"
PAIRS = "recipes/pairs.yaml"
GONE = object()  # as a value: the key is removed


def copy_settings(root):
    """Copy params.yaml and recipes/ to `root`."""
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copytree(ROOT / "recipes", root / "recipes", dirs_exist_ok=True)
    return root


def edit(root, file, changes):
    """Set keys of a YAML file of the copy; a slash separates nested keys and indices."""
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load(root / file)
    for key, value in changes.items():
        *path, last = key.split("/") if isinstance(key, str) else [key]
        place = content
        for part in path:
            place = place[int(part) if isinstance(place, list) else part]
        if value is GONE:
            place.pop(last, None)
        else:
            place[last] = value
    yaml.dump(content, root / file)
