"""Exported students: their logits are the original's, and errors are one line."""

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
from kdflow.export import benchmark, export, formats, latency, locate
from kdflow.export.card import make_card
from kdflow.export.formats import read_card
from kdflow.export.predict import predict
from kdflow.training import record
from kdflow.training.evaluate import predict_logits

CPU = torch.device("cpu")
SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}

pytestmark = pytest.mark.usefixtures("quick_latency")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory):
    """A file of each format and its report; the teacher, which takes as long again, in one format only."""
    out = tmp_path_factory.mktemp("out")
    student = locate.locate_inputs(weights, None, None)
    students = {name: dataclasses.replace(student, teacher=None) for name in SUFFIXES} | {"safetensors": student}
    return {name: export.export(students[name], name, out / f"s{suffix}", 1) for name, suffix in SUFFIXES.items()}


def original(weights):
    """Return the student's logits of the test images, computed as in evaluation, and the images as uint8."""
    student = locate.locate_inputs(weights, None, None)
    run = student.log.settings
    test = load(student.dataset, run.train_images, CPU).test
    images = torch.cat(list(test.for_testing(4, run.base_view, slice(0, len(test)))))
    return predict_logits(fresh(STUDENT, run.classes, run.image_size, 0), test, run.base_view), images


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * max(1, float(expected.abs().max())))


def test_onnx_runs_without_kdflow(exported, weights):
    expected, images = original(weights)
    session = onnxruntime.InferenceSession(exported["onnx"][0])
    for chosen in (slice(0, 1), slice(0, len(images))):
        (logits,) = session.run(None, {"images": images[chosen].numpy()})
        assert_close(logits, expected[chosen])
    (source,), (output,) = session.get_inputs(), session.get_outputs()
    assert (source.name, source.shape, source.type) == ("images", ["n", 3, 32, 32], "tensor(uint8)")
    assert (output.name, output.shape[0]) == ("logits", "n")
    card = json.loads(session.get_modelmeta().custom_metadata_map["kdflow"])
    assert card["class_names"] == ["n01 dark", "n02 hell ä"]
    assert card["preprocessing"]["shorter_side"] == 36


def test_pt2_runs_with_torch_alone(exported, weights):
    expected, images = original(weights)
    extra_files = {"kdflow.json": ""}
    model = torch.export.load(exported["pt2"][0], extra_files=extra_files).module()
    with torch.no_grad():
        for chosen in (slice(0, 1), slice(0, len(images))):
            assert_close(model(images[chosen]), expected[chosen])
    assert json.loads(extra_files["kdflow.json"])["class_names"] == ["n01 dark", "n02 hell ä"]


def test_safetensors_has_the_names_of_the_model(exported):
    with safetensors.safe_open(exported["safetensors"][0], "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    model = fresh(STUDENT, 2, 32, 5)
    model.load_state_dict(state)
    expected = fresh(STUDENT, 2, 32, 0).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("format_name", SUFFIXES)
def test_the_model_card_has_the_run_and_its_hashes(exported, weights, format_name):
    file, report = exported[format_name]
    log = record.read_record(weights.with_suffix(".json"), record.RunLog)
    card = read_card(file)
    assert card == report.model_card
    assert (card.settings, card.weights_sha256, card.top1) == (log.settings, log.weights_sha256, log.curve[-1].top1)
    assert (card.dataset_sha256, card.teacher_sha256) == (log.dataset_sha256, log.teacher_sha256)
    assert card.preprocessing.mean == log.settings.base_view.mean


@pytest.mark.parametrize("format_name", SUFFIXES)
def test_the_file_has_no_path_of_this_machine(exported, format_name, tmp_path):
    file, _ = exported[format_name]
    if format_name == "pt2":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(tmp_path)
    parts = [part for part in tmp_path.rglob("*") if part.is_file()] or [file]
    for part in parts:
        assert str(ROOT).encode() not in part.read_bytes()
        assert b"site-packages" not in part.read_bytes()


@pytest.mark.parametrize("format_name", SUFFIXES)
def test_the_report_has_verification_and_cost(exported, format_name):
    file, report = exported[format_name]
    assert record.read_record(export.report_path(file), export.ExportReport) == report
    assert report.format == format_name
    verification = report.verification
    assert (verification.images, verification.top1_mismatches, verification.top5_mismatches) == (6, 0, 0)
    assert verification.max_difference <= 1e-4 * max(1, verification.largest_logit)
    assert report.student.file_bytes == file.stat().st_size
    assert report.timing_rounds == 1, "as patched: tests need no median"
    assert set(report.student.latency_ms) == {1, 64}
    assert min(report.student.latency_ms.values()) > 0


def test_the_report_compares_student_and_teacher(exported):
    _, report = exported["safetensors"]
    assert (report.student.model, report.teacher.model) == ("smaller", "larger")
    assert report.student.params < report.teacher.params
    assert report.student.flops < report.teacher.flops
    assert report.student.file_bytes < report.teacher.file_bytes
    assert set(report.teacher.latency_ms) == {1, 64}


def test_a_program_runs_only_if_it_is_trusted(exported, tmp_path):
    file, _ = exported["pt2"]
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 50), (90, 20, 200)).save(image)
    assert "add --trust if you trust its source" in refused(lambda: predict([image], file))
    first, *others = [next(predict([image], exported[name][0], trusted=True)).classes for name in SUFFIXES]
    assert len(others) == 2
    for classes in others:
        assert [name for name, _ in classes] == [name for name, _ in first]
        assert classes[0][1] == pytest.approx(first[0][1], abs=1e-5)


def test_onnx_is_valid_and_has_no_notes_of_the_exporter(exported):
    model = onnx.load(exported["onnx"][0])
    onnx.checker.check_model(model, full_check=True)
    assert {item.key for item in model.metadata_props} == {"kdflow"}
    assert not any(node.metadata_props for node in model.graph.node)


def test_export_of_images_in_memory_and_of_a_student_without_a_teacher(tmp_path):
    weights = make(tmp_path, "digits")
    log = record.read_record(weights.with_suffix(".json"), record.RunLog)
    alone = log.model_copy(update={"settings": log.settings.model_copy(update={"teacher": None})})
    record.write_record(weights.with_suffix(".json"), alone)
    file, report = export.export(
        locate.locate_inputs(weights, None, None), "safetensors", tmp_path / "d.safetensors", 1
    )
    assert report.verification.images == 1000
    assert report.teacher is None
    assert read_card(file).preprocessing.shorter_side is None
    # A test image that was enlarged without loss becomes the same image again.
    images = load(tmp_path / "data/digits.h5", 300, CPU).test.images
    large = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.NEAREST)
    assert (formats.make_preprocessing(log.settings)(large).int() - images[0].int()).abs().float().mean() < 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenetv2", "wrn_16_2"])
def test_export_of_other_families(weights, tmp_path, name):
    """Channel shuffles and depthwise convolutions work for any number of images."""
    recipe, card = (
        config.load_recipes(ROOT).models[name],
        make_card(locate.locate_inputs(weights, None, None).log, ["a", "b"]),
    )
    model = fresh(recipe, 2, 32, 0)
    images = torch.randint(256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        expected = formats.NormalisedModel(model, card.settings.base_view)(images)
    formats.format_by_name("onnx").write(model, card, tmp_path / "m.onnx")
    run = formats.format_by_name("onnx").runner(tmp_path / "m.onnx", card, 1)
    for chosen in (slice(0, 1), slice(0, 5)):
        assert_close(run(images[chosen]), expected[chosen])


# --- errors ------------------------------------------------------------------------------------------------


def refused(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copy(weights, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(weights.parents[2], tmp_path / "data")
    return tmp_path / "data/students/kd/seed0.safetensors"


def attempt(weights, out, format_name="safetensors"):
    return lambda: export.export(locate.locate_inputs(weights, None, None), format_name, out, 1)


def test_an_unknown_format_is_refused(weights, tmp_path):
    message = refused(attempt(weights, tmp_path / "x.tflite", "tflite"))
    assert message == "--format: unknown name 'tflite'; allowed: onnx, pt2, safetensors"


def test_format_torch_is_refused_with_the_name_pt2(weights, tmp_path):
    message = refused(attempt(weights, tmp_path / "x.pt2", "torch"))
    assert message == "--format: unknown name 'torch'; did you mean 'pt2'?"


def test_a_wrong_suffix_is_refused(weights, tmp_path):
    assert "ends with .onnx" in refused(attempt(weights, tmp_path / "x.pt", "onnx"))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("seed0.safetensors", "is the file of the student's weights"),
        ("../kd/seed0.safetensors", "is the file of the student's weights"),
        ("link.safetensors", "is the file of the student's weights"),
        ("../../teacher/model.safetensors", "is the file of the teacher's weights"),
        ("seed1.safetensors", "has weights that `kdflow export` did not write"),
    ],
)
def test_weights_are_not_overwritten(copy, out, message):
    (copy.parent / "link.safetensors").symlink_to(copy)
    shutil.copy(copy, copy.parent / "seed1.safetensors")
    before = (copy.parent / out).read_bytes()
    assert message in refused(attempt(copy, copy.parent / out))
    assert (copy.parent / out).read_bytes() == before


def test_weights_with_another_hash_than_in_the_log_are_refused(copy, tmp_path):
    shutil.copy(tmp_path / "data/teacher/model.safetensors", copy)
    assert "expected" in refused(attempt(copy, tmp_path / "x.safetensors"))
    assert not (tmp_path / "x.safetensors").exists()


def test_a_dataset_with_another_hash_than_in_the_log_is_refused(copy, tmp_path):
    make(tmp_path / "other", "digits")
    student = locate.locate_inputs(copy, tmp_path / "other/data/digits.h5", None)
    message = refused(lambda: export.export(student, "safetensors", tmp_path / "x.safetensors", 1))
    assert "digits.h5: sha256 is " in message


@pytest.mark.parametrize("exists", [False, True])
def test_a_file_with_other_logits_is_not_kept(weights, exported, tmp_path, monkeypatch, exists):
    out = tmp_path / "x.safetensors"
    if exists:
        shutil.copy(exported["safetensors"][0], out)
    before = out.read_bytes() if exists else b""
    module = formats.format_by_name("safetensors")
    write = module.write
    monkeypatch.setattr(module, "write", lambda model, card, path: write(fresh(STUDENT, 2, 32, 7), card, path))
    assert refused(attempt(weights, out)).startswith("not exported: logits of 6 test images differ by at most ")
    assert [file.name for file in tmp_path.iterdir()] == (["x.safetensors"] if exists else [])
    assert not exists or out.read_bytes() == before


@pytest.mark.slow
def test_missing_packages_of_onnx_are_named(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refused(attempt(weights, tmp_path / "x.onnx", "onnx"))
    assert message == "onnx, onnxscript, onnxruntime: not installed; pip install 'kdflow[onnx]'"
    assert list(tmp_path.iterdir()) == []


def test_images_for_verification_are_of_all_classes(tmp_path):
    make(tmp_path, "digits")
    test = load(tmp_path / "data/digits.h5", 300, CPU).test
    kept = export.stratified_subset(test, 100)
    assert torch.bincount(kept.labels).tolist() == [10] * 10
    assert export.stratified_subset(test, 5000) is test


def test_a_slow_model_has_a_higher_latency_than_a_fast_one():
    def run(times):
        return lambda images: sum((images.float() @ images.float().mT).sum() for _ in range(times))

    milliseconds = latency.median_latency({"a": run(1), "b": run(12)}, 32, 4)
    assert 2 < milliseconds["b"] / milliseconds["a"] < 60


# --- 8-bit integers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8(weights, tmp_path_factory):
    student = dataclasses.replace(locate.locate_inputs(weights, None, None), teacher=None)
    return export.export(student, "onnx", tmp_path_factory.mktemp("int8") / "s.onnx", 1, int8=True)


def test_int8_is_smaller_and_its_accuracy_is_measured(int8, exported, weights):
    file, report = int8
    float32 = exported["onnx"][1]
    assert report.float32.file_bytes == float32.student.file_bytes
    assert report.student.file_bytes == file.stat().st_size < report.float32.file_bytes
    kinds = {one.data_type for one in onnx.load(file).graph.initializer if one.name.endswith("weight_quantized")}
    assert kinds == {onnx.TensorProto.INT8}
    expected, images = original(weights)
    (logits,) = onnxruntime.InferenceSession(file).run(None, {"images": images.numpy()})
    difference = np.abs(logits - expected.numpy()).max() / float(expected.abs().max())
    assert 1e-4 < difference < 0.2  # it is not float32
    student = locate.locate_inputs(weights, None, None)
    labels = load(student.dataset, student.log.settings.train_images, CPU).test.labels.numpy()
    assert report.int8.top1 == 100 * (logits.argmax(1) == labels).mean()
    assert report.int8.float32_top1 == 100 * (expected.numpy().argmax(1) == labels).mean()
    card = read_card(file)
    assert (card.precision, card.top1) == ("int8", report.int8.top1)
    assert read_card(exported["onnx"][0]).precision == "float32"


def test_int8_needs_onnx_and_images(weights, tmp_path):
    student = locate.locate_inputs(weights, None, None)
    assert "--int8: is for --format onnx" in refused(
        lambda: export.export(student, "pt2", tmp_path / "s.pt2", 1, int8=True)
    )
    without = dataclasses.replace(student, dataset=None)
    assert "leave out --no-verify" in refused(lambda: export.export(without, "onnx", tmp_path / "s.onnx", 1, int8=True))
    assert list(tmp_path.iterdir()) == []


# --- benchmark ---------------------------------------------------------------------------------------------


def test_files_are_measured_side_by_side(exported, int8):
    files = [exported["onnx"][0], exported["safetensors"][0], int8[0]]
    results = benchmark.benchmark(files, [1, 3, 1], 1)
    assert [(one.file, one.batch_size) for one in results] == [(str(f), n) for n in (1, 3) for f in files]
    assert [one.precision for one in results[:3]] == ["float32", "float32", "int8"]
    for one in results:
        first = next(other for other in results if other.batch_size == one.batch_size)
        assert one.latency_ms > 0
        assert one.images_per_second == pytest.approx(1000 * one.batch_size / one.latency_ms)
        assert one.relative_speed == pytest.approx(first.latency_ms / one.latency_ms)
    assert "add --trust" in refused(lambda: benchmark.benchmark([exported["pt2"][0]], [1], 1))
