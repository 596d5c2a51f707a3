"""A model of a library needs an option that its name does not give."""

import pytest
from distillation import options_for
from paths import ROOT

from kdflow import config
from kdflow.core.errors import UserError
from kdflow.models import create_model_on_meta
from kdflow.pipeline import distill_options


def experiment_for(tmp_path, **options):
    chosen = options_for(tmp_path, **{"student": "mobilenet_v2"} | options)
    return distill_options.make_experiment(chosen, config.load_recipes(ROOT))


def parameters(experiment, name):
    model = create_model_on_meta(name, experiment.models[name], 3, 32)
    return sum(parameter.numel() for parameter in model.parameters())


def test_options_change_the_models(tmp_path):
    plain = experiment_for(tmp_path)
    changed = experiment_for(
        tmp_path, student_options=("width_mult=0.5", "dropout=0"), teacher="mobilenet_v3_small",
        teacher_options=("dropout=0.5",),
    )  # fmt: skip
    assert changed.models["mobilenet_v2"].options == {"name": "mobilenet_v2", "width_mult": 0.5, "dropout": 0}
    assert changed.models["mobilenet_v3_small"].options == {"name": "mobilenet_v3_small", "dropout": 0.5}
    assert parameters(changed, "mobilenet_v2") < parameters(plain, "mobilenet_v2") / 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("width_mult", "--student-option: width_mult: must be NAME=VALUE, such as width_mult=0.5"),
        ("=1", "--student-option: =1: must be NAME=VALUE"),
        ("width_mult=[1", r"--student-option: \[1: is not a value in YAML"),
        ("width_mult=!!float x", "--student-option: !!float x: is not a value in YAML"),
        ("name=resnet18", "--student-option: name: is set by the model's name"),
        ("width_mult=1000000", "--student-option: options"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path, option, message):
    with pytest.raises(UserError, match=message) as caught:
        experiment_for(tmp_path, student_options=(option,))
    assert "\n" not in str(caught.value)


def test_an_option_that_the_model_does_not_have_is_named(tmp_path):
    experiment = experiment_for(tmp_path, student_options=("widht_mult=0.5",))
    with pytest.raises(UserError, match=r"torchvision's mobilenet_v2.*widht_mult"):
        parameters(experiment, "mobilenet_v2")


def test_options_of_a_teacher_from_a_file_need_its_model(tmp_path):
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(UserError):
        experiment_for(tmp_path, teacher=str(weights), teacher_options=("dropout=0.5",))
    experiment = experiment_for(
        tmp_path, teacher=str(weights), teacher_model="mobilenet_v3_small", teacher_options=("dropout=0.5",)
    )
    assert experiment.models["mobilenet_v3_small"].options["dropout"] == 0.5
