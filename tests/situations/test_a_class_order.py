"""A teacher from another project, whose outputs are in another order than the dataset's classes."""

import copy
import json
from unittest.mock import patch

import pytest
import torch
from paths import ROOT
from small import METHODS, images, run_of

from kdflow import config, data
from kdflow.config import Model, TeacherWeights
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.data import ImageSet, Loaded
from kdflow.models import convert_weights, create_model, save_weights
from kdflow.pipeline import class_order, distill_options
from kdflow.pipeline.teacher import make_teacher
from kdflow.training import record
from kdflow.training.record import TeacherRecord

NAMES = sorted(str(number) for number in range(12))  # 0, 1, 10, 11, 2, ...
NATURAL = [NAMES.index(str(number)) for number in range(12)]
LABELS = torch.arange(240) % 12
SHUFFLED = torch.randperm(12, generator=torch.Generator().manual_seed(3)).tolist()


class Lookup(torch.nn.Module):
    """A teacher whose logits of any image are the rows of a table."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 12)

    def forward(self, images):
        return self.fc(images.mean((2, 3)))


def logits(order, right=0.75):
    """Return logits of a teacher with its outputs in `order`, a list of labels; the other predictions are random."""
    generator = torch.Generator().manual_seed(0)
    predicted = torch.where(
        torch.rand(240, generator=generator) < right, LABELS, torch.randint(12, (240,), generator=generator)
    )
    return torch.nn.functional.one_hot(predicted, 12).float()[:, order]


def set_order(teacher, given, train_logits, size=8):
    """Call `set_class_order` with a teacher whose logits of the training images are `train_logits`."""
    loaded = Loaded(ImageSet(torch.zeros(240, 3, 8, 8, dtype=torch.uint8), LABELS), images(4, 0), NAMES, "")
    run = run_of(METHODS["ce"]).model_copy(update={"image_size": size})
    with patch.object(class_order, "predict_logits", return_value=train_logits):
        return class_order.set_class_order(teacher, given, loaded, run)


def ordered(order, given):
    """Return the result of `set_class_order`, and the outputs of a teacher before and after it."""
    torch.manual_seed(0)
    teacher, pixels = Lookup(), torch.randn(5, 3, 8, 8)
    before = teacher(pixels).detach()
    result = set_order(teacher, given, logits(order))
    return *result, before, teacher(pixels).detach()


def test_numbers_are_sorted_as_numbers_in_the_natural_order():
    assert [NAMES[label] for label in NATURAL] == [str(number) for number in range(12)]
    assert class_order.natural_order(NAMES) == [int(name) for name in NAMES]
    assert class_order.natural_order(["Img10", "img2", "b", "2"]) == [3, 2, 1, 0]


def test_a_teacher_in_the_natural_order_gives_a_warning_that_names_it(capsys):
    order, note, before, after = ordered(NATURAL, None)
    assert order is None
    assert torch.equal(before, after)
    output = capsys.readouterr().out
    assert output.startswith("warning: teacher: another order of its outputs is right on 80.8 % instead")
    assert " % of 240 training images; --teacher-classes natural (teacher_weights.classes: natural) selects" in output
    assert note.startswith("another order of its outputs is right on 80.8 %")


def test_a_teacher_in_any_other_order_gives_a_warning_that_names_auto(capsys):
    assert ordered(SHUFFLED, None)[0] is None
    assert "--teacher-classes auto (teacher_weights.classes: auto) selects" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("order", "given"),
    [
        (NATURAL, "natural"),
        (NATURAL, "auto"),
        (SHUFFLED, "auto"),
        (SHUFFLED, tuple(NAMES[label] for label in SHUFFLED)),
    ],
)
def test_the_outputs_are_reordered(order, given, capsys):
    outputs, note, before, after = ordered(order, given)
    assert [order[output] for output in outputs] == list(range(12))
    assert torch.allclose(after, before[:, list(outputs)])
    assert note.startswith("outputs in ")
    assert "warning" not in capsys.readouterr().out


def test_a_wrong_order_gives_a_warning_too(capsys):
    assert ordered(SHUFFLED, "natural")[1].count("order") == 2
    assert "warning: teacher: another order" in capsys.readouterr().out


@pytest.mark.parametrize("right", [0.0, 0.2, 0.75, 1.0])
def test_a_teacher_in_the_right_order_is_kept_even_if_it_is_useless(right, capsys):
    teacher = Lookup()
    before = copy.deepcopy(teacher.state_dict())
    for given in (None, "auto"):
        result = set_order(teacher, given, logits(range(12), right))
        assert result == (None, "")
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert capsys.readouterr().out == "teacher: no other order of its outputs is clearly better\n"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[1:], "11 names for 12 classes; missing 0"),
        (["zero", *NAMES[1:]], "unknown zero; missing 0"),
    ],
)
def test_other_names_than_the_dataset_s_are_refused(names, message):
    with pytest.raises(UserError, match=f"must be the names of the dataset's classes: {message}"):
        ordered(NATURAL, tuple(names))


@pytest.mark.parametrize(
    "model",
    [
        Model(family="resnet", options={"depth": 8, "widths": [12, 12, 12, 12]}),
        Model(family="torchvision", options={"name": "squeezenet1_1"}),
        Model(family="torchvision", options={"name": "mobilenet_v3_small"}),
    ],
)
def test_the_last_layer_is_found_in_models_of_any_kind(model):
    torch.manual_seed(0)
    teacher, images = create_model("teacher", model, 12, 64).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = teacher(images)
        set_order(teacher, "natural", logits(NATURAL), 64)
        assert torch.allclose(teacher(images), before[:, class_order.natural_order(NAMES)], rtol=1e-4, atol=1e-6)


def test_a_model_without_a_last_layer_of_the_classes_is_refused():
    class Halves(Lookup):
        def forward(self, images):
            return super().forward(images).roll(1, 1)

    with pytest.raises(UserError, match="the outputs of this model cannot be reordered"):
        set_order(Halves(), "natural", logits(NATURAL))


@pytest.mark.slow
def test_a_real_teacher_is_reordered_once_and_its_record_has_the_order(tmp_path, capsys):
    """The weights of paper/micro with their last layer in another order."""
    experiment = config.load(ROOT)
    spec = experiment.dataset.data
    data.prepare("digits", spec, None, tmp_path, tmp_path / "digits.h5")
    model = create_model("resnet20", experiment.models["resnet20"], 10, spec.image_size)
    convert_weights.load_any_format(model, ROOT / "paper/micro/resnet20.safetensors")
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    original = model.fc.weight.data.clone()
    model.fc.weight.data, model.fc.bias.data = model.fc.weight.data[order], model.fc.bias.data[order]
    file = tmp_path / "model.safetensors"
    save_weights(model, file)

    def made(top1: float, classes: object) -> TeacherRecord:
        weights = TeacherWeights(file=str(file), sha256=files.sha256(file), top1=top1, classes=classes)
        params = experiment.params.model_copy(update={"teacher_weights": weights})
        out = tmp_path / "out"
        make_teacher(experiment.model_copy(update={"params": params}), tmp_path / "digits.h5", out, tmp_path)
        return record.read_record(out / "record.json", TeacherRecord)

    with pytest.raises(UserError, match=r"measures 18.70 % top-1, expected 96.90"):
        made(96.9, None)
    assert "--teacher-classes auto (teacher_weights.classes: auto) selects it" in capsys.readouterr().out
    result = made(96.9, "auto")
    assert [order[output] for output in result.class_order] == list(range(10))
    assert "; outputs in the order that is right on " in result.source
    convert_weights.load_any_format(model, tmp_path / "out/model.safetensors")
    assert torch.equal(model.fc.weight.data, original)
    file = tmp_path / "out/model.safetensors"  # which has the order of the classes now
    assert made(96.9, None) == result
    assert len(json.loads((tmp_path / "out/teacher_classes.json").read_text())) == spec.test_images


def test_the_options_of_the_command_are_checked(tmp_path):
    names = tmp_path / "classes.txt"
    names.write_text("b\n a \n\n", encoding="utf-8")
    given = {"teacher": "t", "out": tmp_path / "out"}

    def found(order, weights=tmp_path / "w"):
        options = distill_options.DistillOptions.model_construct(**given, teacher_classes=order)
        return distill_options._teacher_classes(options, weights)

    assert (found(None), found("auto"), found(str(names))) == (None, "auto", ("b", "a"))
    with pytest.raises(UserError, match="--teacher-classes: t is a model"):
        found("auto", None)
    with pytest.raises(UserError, match=r"nowhere.txt: .*; expected natural, auto, or a text file"):
        found(str(tmp_path / "nowhere.txt"))
    with pytest.raises(UserError, match="has the order of the classes, as every teacher in --out"):
        found("natural", tmp_path / "out/teacher/model.safetensors")


def test_the_order_in_the_settings(tmp_path):
    mistakes = []
    (tmp_path / "w.yaml").write_text("{file: w, sha256: " + "a" * 64 + ", top1: 1.0, classes: [b, a]}")
    assert config.read_settings(tmp_path / "w.yaml", TeacherWeights, mistakes).classes == ("b", "a")
    for value in ("text", "[a, a]", "[1, 2]", "2"):
        (tmp_path / "w.yaml").write_text("{file: w, sha256: " + "a" * 64 + f", top1: 1.0, classes: {value}}}")
        assert config.read_settings(tmp_path / "w.yaml", TeacherWeights, mistakes) is None
        assert all(": classes" in line for line in mistakes)
    with pytest.raises(ValueError, match="classes is the order of the classes of weights from a file"):
        TeacherWeights(file=None, sha256=None, top1=None, classes="auto")
