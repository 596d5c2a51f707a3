"""A project with a package of a user: a model, a loss, a strong view and a dataset."""

import importlib
import shutil
from pathlib import Path

from paths import ROOT

MODELS = """
from torch import nn

from {package}.layers import WIDTH


def build(num_classes, image_size, depth=1):
    layers = [nn.Conv2d(3, WIDTH, 3, stride=2, padding=1), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_classes))


def a_string(num_classes, image_size):
    return "no module"


NUMBER = 3


def too_few(num_classes):
    return build(num_classes, 32)
"""
LOSSES = '''
from torch import nn

NEEDS_FEATURES = False


class Distance(nn.Module):
    """Squared distance of the logits."""

    def __init__(self, student, teacher, labels, power=2):
        super().__init__()
        self.power = power

    def forward(self, inputs):
        return (inputs.student.logits - inputs.teacher.logits).abs().pow(self.power).mean()
'''
VIEWS = '''
import torch

from kdflow.methods.views import unmixed


class Darker:
    """Each image times a random factor."""

    MIXES_IMAGES = False

    @staticmethod
    def draw(sizes, image_size, generator):
        return {{"factor": torch.rand(len(sizes), generator=generator)}}

    @staticmethod
    def apply(x, draw):
        return unmixed(x * draw["factor"])


class WithoutDraw:
    MIXES_IMAGES = False
    apply = Darker.apply


class NotStatic(Darker):
    def draw(self, sizes, image_size, generator):
        return {{}}
'''
DATA = '''
import numpy as np

from kdflow.data import Split, Splits


def read(spec, folder, downloads):
    """Return bright and dark squares."""
    splits = []
    for n in (spec.train_images, spec.test_images):
        labels = np.arange(n) % 2
        images = np.zeros((n, spec.image_size, spec.image_size, 3), dtype=np.uint8) + labels[:, None, None, None] * 200
        splits.append(Split(images.astype(np.uint8), labels.astype(np.int64)))
    return Splits(*splits, ["dark", "bright"])
'''
RECIPES = {
    "models": """
my_large: {{family: {package}.models:build, options: {{depth: 2}}}}
my_small: {{family: {package}.models:build}}
""",
    "methods": """
my_distance: {{ce: 1.0, kl: 0.0, loss: {{name: {package}.losses:Distance, weight: 0.1}}}}
my_view: {{ce: 0.1, kl: 0.9, strong: {{view: {package}.views:Darker}}}}
""",
    "datasets": """
my_squares:
  data: {{reader: {package}.data:read, classes: 2, image_size: 8, train_images: 20, test_images: 10}}
  base_view: {{crop: 0, flip: true, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}
  training: {{batch_size: 4, lr: 0.05, epochs: 2, lr_milestones: [0.5], lr_gamma: 0.1,
    momentum: 0.9, weight_decay: 0.0005, eval_every: 1}}
""",
}
SOURCES = {"models": MODELS, "losses": LOSSES, "views": VIEWS, "data": DATA}


def write_project(folder: Path, package: str) -> Path:
    """Write params.yaml, recipes and the package; its name must be unique among the tests of a process."""
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("")
    (folder / package / "layers.py").write_text("WIDTH = 16\n")
    (folder / "recipes").mkdir()
    for name, text in SOURCES.items():
        (folder / package / f"{name}.py").write_text(text.format(package=package))
    for name, text in RECIPES.items():
        (folder / f"recipes/{name}.yaml").write_text(text.format(package=package))
    importlib.invalidate_caches()
    return folder
