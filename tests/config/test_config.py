"""params.yaml and recipes/: the shipped settings, and the settings of the runs that they make."""

import io
import os
import sys
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from ruamel.yaml import YAML
from settings_files import DATASETS, METHODS, MODELS, PAIRS, edit
from typer.testing import CliRunner

from kdflow import cli, config
from kdflow.config import ExtraLoss, Method, Pick, Resize, Settings, StrongView
from kdflow.core.errors import UserError

BASE_RUN = config.load(ROOT).student_run("kd_tlcutmix_pick", 0)


def with_params(root, **changes):
    edit(root, "params.yaml", changes)
    return config.load(root)


# --- shipped settings ---------------------------------------------------------------------------------------


def test_the_shipped_settings_are_valid():
    experiment = config.load(ROOT)
    shipped = ((DATASETS, experiment.datasets), (MODELS, experiment.models), (METHODS, experiment.methods))
    for file, found in (*shipped, (PAIRS, experiment.pairs)):
        assert list(found) == list(YAML(typ="safe").load(ROOT / file))
    assert {"digits", "cifar100"} <= set(experiment.datasets)


def test_every_shipped_recipe_makes_a_run(root):
    shipped = config.load(root)
    for dataset in (name for name, entry in shipped.datasets.items() if entry.data.reader):
        for model in shipped.models:
            params = shipped.params.model_copy(update={"dataset": dataset, "student": model, "teacher": model})
            experiment = shipped.model_copy(update={"params": params})
            assert experiment.teacher_run().architecture == model
            for method in shipped.methods:
                run = experiment.student_run(method, 1)
                assert (run.dataset, run.architecture, run.seed) == (dataset, model, 1)
                assert run.classes == shipped.datasets[dataset].data.classes
                assert run.method == shipped.methods[method]


def test_cifar100_is_the_field_s_recipe():
    training = config.load(ROOT).datasets["cifar100"].training
    assert (training.epochs, training.batch_size, training.lr) == (240, 64, 0.05)
    assert (training.momentum, training.weight_decay) == (0.9, 5e-4)


def test_the_shipped_methods_are_those_of_the_paper():
    methods = config.load(ROOT).methods
    assert (methods["kd"].ce, methods["kd"].kl, methods["kd"].tau) == (0.1, 0.9, 4.0)
    assert not methods["ce"].needs_teacher
    assert all(methods[name].needs_teacher for name in methods if not name.startswith("ce"))
    assert methods["kd_tlcutmix"].strong == StrongView(view="cutmix")
    assert methods["kd_tlcutmix_pick"].strong == StrongView(view="cutmix", pick=Pick(criterion="kl", pool=2, keep=0.5))
    weights = {"at": 1000.0, "sp": 3000.0, "cc": 0.02, "pkt": 30000.0, "vid": 1.0, "crd": 0.8}
    for name, weight in weights.items():
        plain, with_kd = methods[name], methods[f"{name}_kd"]
        assert plain == Method(ce=1.0, kl=0.0, loss=ExtraLoss(name=name, weight=weight))
        assert with_kd == Method(ce=1.0, kl=1.0, tau=4.0, loss=ExtraLoss(name=name, weight=weight))


@pytest.mark.parametrize("package", ["views", "labels", "picks", "losses"])
def test_every_part_is_used_by_a_shipped_method(package):
    used = set()
    for method in config.load(ROOT).methods.values():
        strong = method.strong
        used |= {
            "views": {strong and strong.view},
            "labels": {strong and strong.label},
            "picks": {strong and strong.pick and strong.pick.criterion},
            "losses": {method.loss and method.loss.name},
        }[package]
    assert used - {None} == set(config.choices(package))


# --- methods and views ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"ce": 1.0, "kl": 0.0}, False),
        ({"ce": 0.0, "kl": 1.0}, True),
        ({"ce": 1.0, "kl": 0.0, "loss": {"name": "sp", "weight": 1.0}}, True),
        ({"ce": 1.0, "kl": 0.0, "strong": {"view": "cutmix", "label": "mixed", "replaces_x": True}}, False),
        ({"ce": 1.0, "kl": 0.0, "strong": {"view": "cutmix", "weight": 0.5}}, True),
    ],
)
def test_a_run_has_a_teacher_where_the_loss_needs_one(root, settings, needed):
    edit(root, METHODS, {"kd": settings})
    experiment = config.load(root)
    assert experiment.methods["kd"].needs_teacher == needed
    run = experiment.student_run("kd", 0)
    assert (run.teacher is not None) == needed
    if needed:
        assert (run.teacher.name, run.teacher.model) == ("resnet20", experiment.models["resnet20"])


@pytest.mark.parametrize(
    ("view", "crop", "flip"),
    [(None, 4, True), ("none", 0, False), ("flip", 0, True), ("flip+crop", 4, True)],
)
def test_the_base_view_is_that_of_the_students(root, view, crop, flip):
    experiment = with_params(root, dataset="cifar100", base_view=view)
    assert (experiment.student_run("kd", 0).base_view.crop, experiment.student_run("kd", 0).base_view.flip) == (
        crop,
        flip,
    )
    assert (experiment.teacher_run().base_view.crop, experiment.teacher_run().base_view.flip) == (4, True)


@pytest.mark.parametrize(
    ("view", "area", "flip"),
    [(None, (0.08, 1.0), True), ("none", None, False), ("flip", None, True), ("flip+crop", (0.08, 1.0), True)],
)
def test_the_base_view_of_resized_images(root, view, area, flip):
    experiment = with_params(root, dataset="imagenet", base_view=view)
    run, full = experiment.student_run("kd", 0), experiment.teacher_run()
    assert (run.base_view.crop, run.base_view.flip, run.base_view.resize) == (0, flip, Resize(side=256, area=area))
    assert (full.base_view.flip, full.base_view.resize) == (True, Resize(side=256, area=(0.08, 1.0)))
    assert config.RunSettings.model_validate_json(run.model_dump_json()) == run


def test_settings_without_resize_do_not_have_the_key(root):
    """Their hash is that of a version without the setting."""
    run = with_params(root, dataset="cifar100").student_run("kd", 0)
    assert "resize" not in run.model_dump(mode="json")["base_view"]
    imagenet = with_params(root, dataset="imagenet").student_run("kd", 0)
    assert "resize" in imagenet.model_dump(mode="json")["base_view"]


def test_imagenet_is_the_field_s_recipe():
    dataset = config.load(ROOT).datasets["imagenet"]
    data, training = dataset.data, dataset.training
    assert (data.classes, data.train_images, data.test_images, data.image_size) == (1000, 1_281_167, 50_000, 224)
    assert (training.epochs, training.batch_size, training.lr, training.weight_decay) == (100, 256, 0.1, 1e-4)
    assert [share * training.epochs for share in training.lr_milestones] == [30, 60, 90]


def test_loader_workers_default_to_the_number_of_cores(root):
    for setting, workers in ((0, 0), (3, 3), (None, min(8, os.cpu_count()))):
        assert with_params(root, **{"compute/loader_workers": setting}).params.compute.resolved_workers == workers


def test_choices_are_the_modules_of_a_package():
    assert config.choices("data") == ["cifar100", "digits", "image_folder", "imagenet", "tiny_imagenet"]
    assert "cutmix" in config.choices("views")
    assert "__init__" not in config.choices("models")


# --- defaults and overrides --------------------------------------------------------------------------------


def test_null_is_the_default_of_the_dataset(root):
    experiment = config.load(root)
    default = experiment.dataset.training
    assert experiment.student_run("kd", 0).training == default
    assert experiment.teacher_run().training == default
    assert experiment.train_images == experiment.dataset.data.train_images == 300


def test_the_learning_rate_of_params_wins_over_the_model_s_over_the_dataset_s(root):
    assert config.load(root).student_run("kd", 0).training.lr == 0.05
    edit(root, MODELS, {"resnet8/lr": 0.01, "resnet20/lr": 0.02})
    experiment = config.load(root)
    assert experiment.student_run("kd", 0).training.lr == 0.01
    assert experiment.teacher_run().training.lr == 0.02
    experiment = with_params(root, lr=0.3)
    assert experiment.student_run("kd", 0).training.lr == 0.3
    assert experiment.teacher_run().training.lr == 0.02, "lr is the students'"


def test_overrides_of_the_students_win_and_leave_the_teacher_alone(root):
    experiment = with_params(root, epochs=3, batch_size=7)
    training = experiment.student_run("kd", 0).training
    assert (training.epochs, training.batch_size) == (3, 7)
    default = experiment.dataset.training
    assert training.model_copy(update={"epochs": default.epochs, "batch_size": default.batch_size}) == default
    assert experiment.teacher_run().training == default


def test_teacher_epochs_are_the_teacher_s(root):
    experiment = with_params(root, teacher_epochs=5)
    assert experiment.teacher_run().training.epochs == 5
    assert experiment.student_run("kd", 0).training.epochs == 40


def test_train_images_hold_for_teacher_and_student(root):
    experiment = with_params(root, train_images=100)
    assert experiment.train_images == 100
    assert experiment.student_run("kd", 0).train_images == experiment.teacher_run().train_images == 100


def test_the_teacher_learns_from_labels_alone(root):
    run = config.load(root).teacher_run()
    assert (run.role, run.architecture, run.seed) == ("teacher", "resnet20", 0)
    assert (run.method.ce, run.method.kl, run.method.strong) == (1.0, 0.0, None)


def test_a_method_of_the_command_line_that_is_unknown_is_refused():
    with pytest.raises(UserError, match="'kd_tlcutmx'; did you mean 'kd_tlcutmix'"):
        config.load(ROOT).student_run("kd_tlcutmx", 0)


# --- the hash of the settings ------------------------------------------------------------------------------


def leaves(value, path=()):
    if isinstance(value, Settings):
        for name in type(value).model_fields:
            yield from leaves(getattr(value, name), (*path, name))
    else:
        yield path, value


def changed(value, path, leaf):
    name, *rest = path
    new = changed(getattr(value, name), rest, leaf) if rest else leaf
    return value.model_copy(update={name: new})


def other(leaf):
    """Return a value near this one."""
    match leaf:
        case bool():
            return not leaf
        case None:
            return 0.25
        case int() | float():
            return leaf + 1
        case str():
            return leaf + "x"
        case tuple():
            return (*leaf[:-1], leaf[-1] / 2) if leaf and isinstance(leaf[-1], float) else (*leaf, "another")
        case dict():
            return {**leaf, "depth": 14}
    raise AssertionError(leaf)


LEAVES = dict(leaves(BASE_RUN))


def test_all_settings_of_a_run_are_tested():
    assert len(LEAVES) >= 25
    assert ("training", "lr_milestones") in LEAVES
    assert ("method", "strong", "pick", "keep") in LEAVES


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_the_hash_changes_with_every_setting(path):
    altered = changed(BASE_RUN, path, other(LEAVES[path]))
    assert altered != BASE_RUN
    assert altered.sha256 != BASE_RUN.sha256


@given(st.lists(st.sampled_from(sorted(LEAVES)), max_size=4))
@settings(max_examples=50)
def test_two_runs_have_one_hash_only_if_their_settings_are_the_same(paths):
    altered = BASE_RUN
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            altered = changed(altered, path, other(LEAVES[path]))
        assert (altered.sha256 == BASE_RUN.sha256) == (altered == BASE_RUN)


def test_the_hash_survives_json_and_another_load(root):
    again = config.load(root).student_run("kd_tlcutmix_pick", 0)
    assert again.sha256 == BASE_RUN.sha256
    assert config.RunSettings.model_validate_json(BASE_RUN.model_dump_json()).sha256 == BASE_RUN.sha256
    assert len(BASE_RUN.sha256) == 64


def test_a_strong_view_changes_the_hash():
    without = BASE_RUN.method.model_copy(update={"strong": None})
    assert BASE_RUN.model_copy(update={"method": without}).sha256 != BASE_RUN.sha256


def test_an_integer_and_the_same_float_have_one_hash(root):
    whole = with_params(root, lr=1).student_run("kd", 0).sha256
    assert whole == with_params(root, lr=1.0).student_run("kd", 0).sha256


def test_compute_does_not_change_the_hash(root):
    where = {"device": "cuda:1", "threads": 7, "max_parallel_runs": 3}
    compute = {**where, "replay_gb": 1.5, "loader_workers": 5, "processes_per_run": 2, "log": ["wandb"]}
    experiment = with_params(root, compute=compute, data_folder="/elsewhere")
    assert experiment.student_run("kd_tlcutmix_pick", 0).sha256 == BASE_RUN.sha256


def test_no_stage_depends_on_compute():
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].values()
    keys = [key for stage in stages for key in stage.get("do", stage).get("params", []) if isinstance(key, str)]
    assert "seeds" in keys and not any(key.startswith("compute") for key in keys)


def test_check_refuses_a_tracker_that_is_not_installed(root, monkeypatch):
    edit(root, "params.yaml", {"compute/log": ["tensorboard"]})
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = CliRunner().invoke(cli.app, ["check", "--root", str(root)])
    assert str(done.exception).startswith("log: tensorboard is not installed: pip install tensorboard")


def test_the_list_of_methods_and_seeds_does_not_change_a_run(root):
    experiment = with_params(root, methods=["kd"], seeds=[5, 0])
    assert experiment.student_run("kd_tlcutmix_pick", 0).sha256 == BASE_RUN.sha256


def test_params_are_written_as_dvc_writes_them():
    """`dvc exp run -S` then changes no other line."""
    text = (ROOT / "params.yaml").read_text()
    yaml, written = YAML(), io.StringIO()
    yaml.dump(yaml.load(text), written)
    assert written.getvalue() == text
