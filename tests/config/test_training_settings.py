"""Changes of the training in params.yaml: which value is used, and what does not go together."""

import pytest
from settings_files import DATASETS, MODELS, copy_settings, edit

from kdflow import config
from kdflow.core.errors import UserError


def experiment(folder, changes, recipes=()):
    edit(copy_settings(folder), "params.yaml", changes)
    for file, values in recipes:
        edit(folder, file, values)
    return config.load(folder)


def test_changes_are_those_of_teacher_and_students(tmp_path):
    changes = {"training": {"ema": 0.9, "label_smoothing": 0.1}, "teacher_training": {"lr": 0.02, "batch_size": 16}}
    loaded = experiment(tmp_path, changes)
    recipe, student, teacher = loaded.dataset.training, loaded.student_run("kd", 0), loaded.teacher_run()
    assert student.training == recipe.model_copy(update={"ema": 0.9, "label_smoothing": 0.1})
    assert teacher.training == recipe.model_copy(update={"lr": 0.02, "batch_size": 16})


@pytest.mark.parametrize(
    ("changes", "model_lr", "lr", "weight_decay"),
    [
        ({}, 0.2, 0.2, 5e-4),
        ({"lr": 0.3}, 0.2, 0.3, 5e-4),
        ({"training": {"optimizer": "adamw"}}, 0.2, 1e-3, 1e-2),
        ({"training": {"optimizer": "adamw", "weight_decay": 0.0}, "lr": 0.3}, 0.2, 0.3, 0.0),
        ({"training": {"optimizer": "sgd"}}, None, 0.05, 5e-4),
    ],
)
def test_learning_rate_and_weight_decay_of_an_optimiser(tmp_path, changes, model_lr, lr, weight_decay):
    training = experiment(tmp_path, changes, [(MODELS, {"resnet8/lr": model_lr})]).student_run("kd", 0).training
    assert (training.lr, training.weight_decay) == (lr, weight_decay)


def test_a_recipe_may_have_another_optimiser(tmp_path):
    recipe = {"digits/training/optimizer": "adamw", "digits/training/lr": 0.002}
    loaded = experiment(tmp_path, {}, [(DATASETS, recipe), (MODELS, {"resnet8/lr": 0.2})])
    training = loaded.student_run("kd", 0).training
    assert (training.optimizer, training.lr, training.weight_decay) == ("adamw", 0.002, 5e-4)


def test_the_temperature_is_that_of_methods_with_one(tmp_path):
    loaded = experiment(tmp_path, {"temperature": 2.0, "methods": ["ce", "kd", "kd_tlcutmix_pick", "sp"]})
    changed = {name: loaded.student_run(name, 0).method != loaded.methods[name] for name in loaded.params.methods}
    assert changed == {"ce": False, "kd": True, "kd_tlcutmix_pick": True, "sp": False}
    assert loaded.student_run("kd", 0).method.tau == 2.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"early_stop": 3}}, "training.early_stop: needs val_share"),
        ({"teacher_training": {"early_stop": 3}}, "teacher_training.early_stop: needs val_share"),
        ({"training": {"warmup_epochs": 5}, "epochs": 5}, "training.warmup_epochs: 5 must be less than epochs, 5"),
        (
            {"training": {"label_smoothing": 0.1}, "methods": ["ce", "ce_cutmix"]},
            "training.label_smoothing: method ce_cutmix has no cross-entropy with the labels of x",
        ),
        (
            {"training": {"class_balance": "weights"}, "methods": ["kd_cutmix_only"]},
            "training.class_balance: weights: method kd_cutmix_only has no cross-entropy",
        ),
        ({"temperature": 2.0, "methods": ["ce"]}, "temperature: no loss of ce has a temperature"),
        ({"training": {"optimizer": "lion"}}, "training.optimizer: input should be 'sgd' or 'adamw', got 'lion'"),
        ({"training": {"ema": 1.0}}, "training.ema: input should be less than 1, got 1.0"),
        ({"training": {"clip_grad": 0.0}}, "training.clip_grad: input should be greater than 0, got 0.0"),
        ({"training": {"label_smoothing": 1.0}}, "training.label_smoothing: input should be less than 1"),
        ({"training": {"lr": 1.0}}, "training.lr: unknown key"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, changes, words):
    with pytest.raises(UserError) as caught:
        experiment(tmp_path, changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_with_settings_that_do_not_go_together_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"datasets.yaml: digits.training: early_stop: needs val_share"):
        experiment(tmp_path, {}, [(DATASETS, {"digits/training/early_stop": 3})])
