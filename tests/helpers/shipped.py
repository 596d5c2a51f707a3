"""A small student and its teacher as an experiment leaves them, of image files of all kinds or of digits."""

from pathlib import Path

import torch
from factories import make_log
from paths import ROOT
from small import STUDENT, TEACHER
from torch import nn
from tree import SPEC, VIEWS, make_tree

from kdflow import config
from kdflow.config import Architecture, Model
from kdflow.data import prepare
from kdflow.models import create_model, save_weights
from kdflow.training import record


def fresh(recipe: Model, classes: int, size: int, seed: int) -> nn.Module:
    """Return a model with running statistics that are not the initial ones, in eval mode."""
    torch.manual_seed(seed)
    model = create_model("small", recipe, classes, size)
    for name, value in model.state_dict().items():
        if "running_mean" in name:
            value.uniform_(-0.2, 0.2)
        if "running_var" in name:
            value.uniform_(0.5, 1.5)
    return model.eval()


def make(folder: Path, dataset: str = "tree") -> Path:
    """Return the weights of a student by kd; write log, dataset and teacher below `folder`, as an experiment does."""
    if dataset == "tree":
        spec, views = SPEC, VIEWS
        digest = prepare("tree", spec, make_tree(folder / "images"), folder, folder / "data/tree.h5")
    else:
        entry = config.load_recipes(ROOT).datasets[dataset]
        spec, views = entry.data, entry.base_view
        digest = prepare(dataset, spec, None, folder, folder / f"data/{dataset}.h5")
    log = make_log()
    teacher_sha256 = save_weights(
        fresh(TEACHER, spec.classes, spec.image_size, 1), folder / "data/teacher/model.safetensors"
    )
    weights = folder / "data/students/kd/seed0.safetensors"
    sha256 = save_weights(fresh(STUDENT, spec.classes, spec.image_size, 0), weights)
    run = log.settings.model_copy(
        update={
            "dataset": dataset,
            "classes": spec.classes,
            "image_size": spec.image_size,
            "train_images": spec.train_images,
            "base_view": views,
            "architecture": "smaller",
            "model": STUDENT,
            "teacher": Architecture(name="larger", model=TEACHER),
        }
    )
    hashes = {"dataset_sha256": digest, "teacher_sha256": teacher_sha256, "weights_sha256": sha256}
    made = log.model_copy(update={"settings": run, "settings_sha256": run.sha256, **hashes})
    record.write_record(weights.with_suffix(".json"), made)
    return weights
