"""Students as files: what they say is what the original says, and what is wrong is one line."""

import dataclasses
import json
import shutil
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import torch
from paths import ROOT
from PIL import Image
from shipped import STUDENT, fresh, make

from kdflow import config
from kdflow.core.errors import UserError
from kdflow.data import load
from kdflow.export import export, formats, latency, locate
from kdflow.export.card import make_card
from kdflow.export.formats import read_card
from kdflow.export.predict import predict as said_of
from kdflow.training import record
from kdflow.training.evaluate import predict_logits

CPU = torch.device("cpu")
SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "SHORTEST", 0.0)
        patch.setattr(latency, "ROUNDS", 1)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory):
    """A file of each form and its report."""
    out = tmp_path_factory.mktemp("out")
    found = locate.locate_inputs(weights, None, None)
    # The teacher, which takes as long again, in one form.
    asked = {form: dataclasses.replace(found, teacher=None) for form in SUFFIXES} | {"safetensors": found}
    return {form: export.export(asked[form], form, out / f"s{suffix}", 1) for form, suffix in SUFFIXES.items()}


def original(weights):
    """The student's logits of the test images as `evaluate` has them, and the images as bytes."""
    found = locate.locate_inputs(weights, None, None)
    run = found.log.settings
    test = load(found.dataset, run.train_images, CPU).test
    images = torch.cat(list(test.for_testing(4, run.base_view, slice(0, len(test)))))
    return predict_logits(fresh(STUDENT, run.classes, run.image_size, 0), test, run.base_view), images


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1, float(expected.abs().max())))


def test_onnx_runs_without_kdflow(exported, weights):
    expected, images = original(weights)
    session = onnxruntime.InferenceSession(exported["onnx"][0])
    for chosen in (slice(0, 1), slice(0, len(images))):
        (logits,) = session.run(None, {"images": images[chosen].numpy()})
        close(logits, expected[chosen])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.shape, taken.type) == ("images", ["n", 3, 32, 32], "tensor(uint8)")
    assert (given.name, given.shape[0]) == ("logits", "n")
    card = json.loads(session.get_modelmeta().custom_metadata_map["kdflow"])
    assert card["class_names"] == ["n01 dark", "n02 hell ä"]
    assert card["preprocessing"]["shorter_side"] == 36


def test_pt2_runs_with_torch_alone(exported, weights):
    expected, images = original(weights)
    told = {"kdflow.json": ""}
    model = torch.export.load(exported["pt2"][0], extra_files=told).module()
    with torch.no_grad():
        for chosen in (slice(0, 1), slice(0, len(images))):
            close(model(images[chosen]), expected[chosen])
    assert json.loads(told["kdflow.json"])["class_names"] == ["n01 dark", "n02 hell ä"]


def test_safetensors_has_our_names(exported):
    with safetensors.safe_open(exported["safetensors"][0], "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    model = fresh(STUDENT, 2, 32, 5)
    model.load_state_dict(state)
    expected = fresh(STUDENT, 2, 32, 0).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("form", SUFFIXES)
def test_a_file_says_what_it_is(exported, weights, form):
    file, report = exported[form]
    log = record.read_record(weights.with_suffix(".json"), record.RunLog)
    card = read_card(file)
    assert card == report.card
    assert (card.settings, card.weights_sha256, card.top1) == (log.settings, log.weights_sha256, log.curve[-1].top1)
    assert (card.dataset_sha256, card.teacher_sha256) == (log.dataset_sha256, log.teacher_sha256)
    assert card.preprocessing.mean == log.settings.base_view.mean


@pytest.mark.parametrize("form", SUFFIXES)
def test_no_path_of_this_machine_is_in_it(exported, form, tmp_path):
    file, _ = exported[form]
    if form == "pt2":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(tmp_path)
    parts = [part for part in tmp_path.rglob("*") if part.is_file()] or [file]
    for part in parts:
        assert str(ROOT).encode() not in part.read_bytes()
        assert b"site-packages" not in part.read_bytes()


@pytest.mark.parametrize("form", SUFFIXES)
def test_the_report_beside_it(exported, form):
    file, report = exported[form]
    assert record.read_record(export.report_path(file), export.Report) == report
    assert (report.verified.images, report.verified.top1_differ, report.verified.top5_differ) == (6, 0, 0)
    assert report.verified.max_difference <= 1e-4 * max(1, report.verified.largest_logit)
    assert report.student.bytes == file.stat().st_size
    assert report.rounds == 1, "as patched: tests need no median"
    assert set(report.student.milliseconds) == {1, 64}
    assert min(report.student.milliseconds.values()) > 0


def test_the_teacher_beside_it(exported):
    _, report = exported["safetensors"]
    assert (report.student.model, report.teacher.model) == ("smaller", "larger")
    assert report.student.params < report.teacher.params
    assert report.student.flops < report.teacher.flops
    assert report.student.bytes < report.teacher.bytes
    assert set(report.teacher.milliseconds) == {1, 64}


def test_a_program_is_run_for_who_trusts_it_alone(exported, tmp_path):
    file, _ = exported["pt2"]
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 50), (90, 20, 200)).save(image)
    assert "--trust if you know who made it" in refused(lambda: said_of([image], file))
    said = [said_of([image], exported[form][0], trusted=True)[0].classes for form in SUFFIXES]
    assert [[name for name, _ in classes] for classes in said] == [[name for name, _ in said[0]]] * 3
    assert all(classes[0][1] == pytest.approx(said[0][0][1], abs=1e-5) for classes in said)


def test_onnx_is_valid_and_keeps_no_shapes_of_its_making(exported):
    model = onnx.load(exported["onnx"][0])
    onnx.checker.check_model(model, full_check=True)
    assert {item.key for item in model.metadata_props} == {"kdflow"}
    assert not any(node.metadata_props for node in model.graph.node)


def test_images_in_memory_and_a_student_without_teacher(tmp_path):
    weights = make(tmp_path, "digits")
    log = record.read_record(weights.with_suffix(".json"), record.RunLog)
    alone = log.model_copy(update={"settings": log.settings.model_copy(update={"teacher": None})})
    record.write_record(weights.with_suffix(".json"), alone)
    file, report = export.export(
        locate.locate_inputs(weights, None, None), "safetensors", tmp_path / "d.safetensors", 1
    )
    assert report.verified.images == 1000
    assert report.teacher is None
    assert read_card(file).preprocessing.shorter_side is None
    # A test image, enlarged without loss, is resized back to what it was.
    images = load(tmp_path / "data/digits.h5", 300, CPU).test.images
    large = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.NEAREST)
    assert (formats.preprocess(log.settings)(large).int() - images[0].int()).abs().float().mean() < 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenetv2", "wrn_16_2"])
def test_other_families_leave(weights, tmp_path, name):
    """Channel shuffles and depthwise convolutions for any number of images."""
    recipe, card = (
        config.load_recipes(ROOT).models[name],
        make_card(locate.locate_inputs(weights, None, None).log, ["a", "b"]),
    )
    model = fresh(recipe, 2, 32, 0)
    images = torch.randint(256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        expected = formats.FromBytes(model, card.settings.base_view)(images)
    formats.format_by_name("onnx").write(model, card, tmp_path / "m.onnx")
    run = formats.format_by_name("onnx").runner(tmp_path / "m.onnx", card, 1)
    for chosen in (slice(0, 1), slice(0, 5)):
        close(run(images[chosen]), expected[chosen])


# --- refused -----------------------------------------------------------------------------------------------


def refused(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copy(weights, tmp_path):
    """A copy to be damaged."""
    shutil.copytree(weights.parents[2], tmp_path / "data")
    return tmp_path / "data/students/kd/seed0.safetensors"


def attempt(weights, out, form="safetensors"):
    return lambda: export.export(locate.locate_inputs(weights, None, None), form, out, 1)


def test_an_unknown_form(weights, tmp_path):
    said = refused(attempt(weights, tmp_path / "x.tflite", "tflite"))
    assert said == "--format: unknown name 'tflite'; allowed: onnx, pt2, safetensors"


def test_format_torch_is_refused_with_the_name_pt2(weights, tmp_path):
    message = refused(attempt(weights, tmp_path / "x.pt2", "torch"))
    assert message == "--format: unknown name 'torch'; did you mean 'pt2'?"


def test_another_ending(weights, tmp_path):
    assert "ends with .onnx" in refused(attempt(weights, tmp_path / "x.pt", "onnx"))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("seed0.safetensors", "is the student itself"),
        ("../kd/seed0.safetensors", "is the student itself"),
        ("link.safetensors", "is the student itself"),
        ("../../teacher/model.safetensors", "is the teacher itself"),
        ("seed1.safetensors", "is there and no export of kdflow, but other weights"),
    ],
)
def test_weights_are_not_written_over(copy, out, said):
    (copy.parent / "link.safetensors").symlink_to(copy)
    shutil.copy(copy, copy.parent / "seed1.safetensors")
    before = (copy.parent / out).read_bytes()
    assert said in refused(attempt(copy, copy.parent / out))
    assert (copy.parent / out).read_bytes() == before


def test_weights_that_are_not_the_log_s(copy, tmp_path):
    shutil.copy(tmp_path / "data/teacher/model.safetensors", copy)
    assert "expected" in refused(attempt(copy, tmp_path / "x.safetensors"))
    assert not (tmp_path / "x.safetensors").exists()


def test_a_dataset_that_is_not_the_log_s(copy, tmp_path):
    make(tmp_path / "other", "digits")
    found = locate.locate_inputs(copy, tmp_path / "other/data/digits.h5", None)
    said = refused(lambda: export.export(found, "safetensors", tmp_path / "x.safetensors", 1))
    assert "digits.h5: sha256 is " in said


@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_says_something_else_is_not_kept(weights, exported, tmp_path, monkeypatch, there):
    out = tmp_path / "x.safetensors"
    if there:
        shutil.copy(exported["safetensors"][0], out)
    before = out.read_bytes() if there else b""
    form = formats.format_by_name("safetensors")
    right = form.write
    monkeypatch.setattr(form, "write", lambda model, card, path: right(fresh(STUDENT, 2, 32, 7), card, path))
    assert refused(attempt(weights, out)).startswith("not exported: logits of 6 test images differ by at most ")
    assert [file.name for file in tmp_path.iterdir()] == (["x.safetensors"] if there else [])
    assert not there or out.read_bytes() == before


@pytest.mark.slow
def test_without_the_packages_of_onnx(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = refused(attempt(weights, tmp_path / "x.onnx", "onnx"))
    assert said == "onnx, onnxscript, onnxruntime: not installed; pip install -e '.[onnx]'"
    assert list(tmp_path.iterdir()) == []


def test_the_images_to_verify_on_are_of_all_classes(tmp_path):
    make(tmp_path, "digits")
    test = load(tmp_path / "data/digits.h5", 300, CPU).test
    kept = export.stratified_subset(test, 100)
    assert torch.bincount(kept.labels).tolist() == [10] * 10
    assert export.stratified_subset(test, 5000) is test


def test_a_slow_model_takes_longer_than_a_fast_one():
    def run(times):
        return lambda images: sum((images.float() @ images.float().mT).sum() for _ in range(times))

    found = latency.median_latency({"a": run(1), "b": run(12)}, 32, 4)
    assert 2 < found["b"] / found["a"] < 60
