"""Prediction with an exported student: as in evaluation, for any image, and one line per broken file."""

import csv
import io
import json
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from shipped import STUDENT, fresh, make

from kdflow import cli
from kdflow.core.errors import UserError
from kdflow.data import load
from kdflow.data.decode import decode
from kdflow.export import export, latency, locate
from kdflow.export.card import make_card
from kdflow.export.formats import format_by_name, read_card
from kdflow.export.predict import find_images, predict
from kdflow.training.evaluate import predict_logits

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a student's weights below it, and the exported student, s.safetensors."""
    folder = tmp_path_factory.mktemp("predict")
    found = locate.locate_inputs(make(folder), None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "MIN_ROUND_SECONDS", 0.0)
        export.export(found, "safetensors", folder / "s.safetensors", 1)
    return folder


def test_predictions_are_those_of_evaluation(made):
    run = locate.locate_inputs(made / "data/students/kd/seed0.safetensors", None, None).log.settings
    test = load(made / "data/tree.h5", run.train_images, CPU).test
    probabilities = predict_logits(fresh(STUDENT, 2, 32, 0), test, run.base_view).double().softmax(1)
    predictions = predict([test.folder / path.decode() for path in test.files.paths.tolist()], made / "s.safetensors")
    names = ["n01 dark", "n02 hell ä"]
    for one, expected in zip(predictions, probabilities, strict=True):
        assert [name for name, _ in one.classes] == [names[i] for i in expected.argsort(descending=True)]
        assert [p for _, p in one.classes] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "YCbCr"])
@pytest.mark.parametrize("size", [(1, 1), (300, 2)])
def test_images_of_any_mode_are_read(made, tmp_path, mode, size):
    file = tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr", "I;16B") else "a.png")
    ramp = np.linspace(0, 255, size[0] * size[1]).round().astype(np.uint8).reshape(size[::-1])
    grey = Image.fromarray(ramp).point(lambda value: 255 * (value > 127)) if mode == "1" else Image.fromarray(ramp)
    wide = ramp.astype({"I;16": "<u2", "I;16B": ">u2"}.get(mode, "u1"))
    image = Image.frombytes(mode, size, (wide * 257).tobytes()) if mode.startswith("I;16") else grey.convert(mode)
    image.save(file)
    wide16 = mode.startswith("I;16")
    decoded = np.asarray(decode(file, grey16_max=2**16 - 1 if wide16 else None)).astype(int)
    assert np.abs(decoded - np.asarray(grey)[:, :, None]).max() <= 1
    (prediction,) = predict([file], made / "s.safetensors")
    if wide16:  # the training images had none
        assert "grey of 16 bits has no defined range" in prediction.error
        return
    assert prediction.error is None
    assert sum(p for _, p in prediction.classes) == pytest.approx(1)


def test_grey_of_16_bits_is_scaled_as_in_training(made, tmp_path, monkeypatch):
    card = read_card(made / "s.safetensors")
    base_view = card.settings.base_view.model_copy(update={"grey16_max": 4080})
    scaled = card.model_copy(update={"settings": card.settings.model_copy(update={"base_view": base_view})})
    monkeypatch.setattr("kdflow.export.formats.read_card", lambda _: scaled)
    levels = np.random.RandomState(0).randint(0, 256, (40, 50))
    Image.fromarray((levels * 16).astype(np.uint16)).save(tmp_path / "wide.png")
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "narrow.png")
    wide, narrow = predict([tmp_path / "wide.png", tmp_path / "narrow.png"], made / "s.safetensors")
    assert wide.error is None
    assert wide.classes == narrow.classes


def test_the_model_card_has_the_treatment_of_grey_transparency_and_orientation(made):
    log = locate.locate_inputs(made / "data/students/kd/seed0.safetensors", None, None).log
    assert make_card(log, ["a", "b"]).preprocessing.grey16_max is None
    base_view = log.settings.base_view.model_copy(update={"grey16_max": 4080})
    scaled = log.model_copy(update={"settings": log.settings.model_copy(update={"base_view": base_view})})
    preprocessing = make_card(scaled, ["a", "b"]).preprocessing
    assert preprocessing.grey16_max == 4080
    assert preprocessing.transparency == "composited over white"
    assert preprocessing.orientation == "as in the EXIF data"


@pytest.mark.parametrize(("mode", "kind"), [("I", np.int32), ("F", np.float32)])
def test_images_of_unknown_range_are_refused(made, tmp_path, mode, kind):
    file = tmp_path / "a.tiff"
    Image.fromarray(np.ones((4, 5), dtype=kind)).save(file)
    (prediction,) = predict([file], made / "s.safetensors")
    reason = f"pixels of 32 bits (Pillow's mode {mode}) have no defined range"
    assert prediction.error == f"{file}: cannot be read as an image: {reason}"


def _bomb(file, side):
    """Write a PNG of 300 bytes whose header declares `side` x `side` pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 90_000)))


def test_broken_images_are_a_line_each_and_the_others_are_predicted(made, tmp_path):
    good = tmp_path / "good.png"
    Image.new("RGB", (40, 50)).save(good)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    _bomb(tmp_path / "bomb.png", 30_000)
    _bomb(tmp_path / "large.png", 10_000)  # Pillow only warns of this one
    names = ["empty.jpg", "text.jpg", "cut.png", "bomb.png", "missing.jpg", "", "large.png", "good.png"]
    predictions = list(predict([tmp_path / name for name in names], made / "s.safetensors"))
    assert [one.error is None for one in predictions] == [False] * 7 + [True]
    for name, one in zip(names[:-1], predictions, strict=False):
        assert one.error.startswith(f"{tmp_path / name}: ")
        assert "\n" not in one.error
    assert "pixels" in predictions[3].error
    assert predictions[6].error.endswith("10000 x 10000 pixels, at most 89,478,485 are allowed")
    assert predictions[4].error.endswith("no such file")


def refused(model, **options) -> str:
    with pytest.raises(UserError) as caught:
        predict([], model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_not_exported_students_are_refused(made, tmp_path):
    assert refused(tmp_path).endswith("is a folder, not a file")
    assert refused(tmp_path / "a.onnx").endswith("no such file")
    assert "has no model card" in refused(made / "data/teacher/model.safetensors")
    for suffix in (".onnx", ".pt2", ".safetensors"):
        file = tmp_path / f"noise{suffix}"
        file.write_bytes(b"\x08\x07" * 500)
        assert str(file) in refused(file, trusted=True)
    (tmp_path / "a.h5").touch()
    assert refused(tmp_path / "a.h5").endswith("its name must end with one of .onnx, .pt2, .safetensors")


def test_a_truncated_file_is_refused(made, tmp_path):
    file = tmp_path / "s.safetensors"
    file.write_bytes((made / "s.safetensors").read_bytes()[:-100])
    assert str(file) in refused(file)


def test_the_command_prints_classes_and_errors(made, tmp_path, monkeypatch, capsys):
    shutil.copy(made / "s.safetensors", tmp_path)
    Image.new("RGB", (40, 50)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for options in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["kdflow", "predict", "a.png", "b.png", "--model", "s.safetensors", *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        done = capsys.readouterr()
        assert end.value.code == 1
        names = [name for name, _ in json.loads(done.out)[0]["classes"]] if options else [done.out]
        assert any("n02 hell ä" in name for name in names)
        assert done.err == "error: b.png: no such file\n"


@pytest.fixture
def photos(made, tmp_path, monkeypatch):
    """Images in a folder, below it and beside it, and a file that is none; the working directory has the student."""
    shutil.copy(made / "s.safetensors", tmp_path)
    for i, name in enumerate(("a.png", "photos/b.png", "photos/deep/c d.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 50), (90 * i, 0, 0)).save(tmp_path / name)
    (tmp_path / "photos/notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    return ["a.png", "photos/b.png", "photos/deep/c d.png"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["photos"], [1, 2]),
        (["photos/**/*.png", "a.png"], [1, 2, 0]),
        (["*.png", "photos"], [0, 1, 2]),
    ],
)
def test_folders_and_patterns_stand_for_images(photos, names, expected):
    assert [str(file) for file in find_images(names)] == [photos[i] for i in expected]


def test_a_name_that_stands_for_nothing_is_an_error(photos, made):
    (made / "empty").mkdir(exist_ok=True)
    names = ["*.gif", "none.png", str(made / "empty"), photos[0]]
    predictions = list(predict(find_images(names), made / "s.safetensors"))
    assert [one.image for one in predictions] == names
    assert [one.error for one in predictions[:2]] == ["*.gif: no such file", "none.png: no such file"]
    assert "is a folder, not a file" in predictions[2].error


def test_batches_have_the_predictions_of_single_images(photos, made, monkeypatch):
    files = [Path(name) for name in [*photos, "photos/notes.txt", *photos]]
    single = [next(predict([file], made / "s.safetensors")) for file in files]
    monkeypatch.setattr("kdflow.export.predict.BATCH", 4)
    for one, expected in zip(predict(iter(files), made / "s.safetensors"), single, strict=True):
        assert (one.image, one.error) == (expected.image, expected.error)
        assert dict(one.classes) == pytest.approx(dict(expected.classes), abs=1e-6)


def command(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["kdflow", "predict", *options, "--model", "s.safetensors"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, capsys.readouterr()


@pytest.mark.usefixtures("photos")
def test_lines_of_json_and_rows_of_csv_have_every_image(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a.png\nphotos/deep/c d.png\n\nb.png\n"))
    code, done = command(monkeypatch, capsys, "-", "--jsonl")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert (code, [one["image"] for one in lines]) == (1, ["a.png", "photos/deep/c d.png", "b.png"])
    assert done.err == "error: b.png: no such file\n"
    code, done = command(monkeypatch, capsys, "photos", "a.png", "--csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert (code, [row["image"] for row in rows]) == (0, ["photos/b.png", "photos/deep/c d.png", "a.png"])
    assert [(rows[2]["class_1"], float(rows[2]["p_1"])), (rows[2]["class_2"], float(rows[2]["p_2"]))] == [
        (name, pytest.approx(p, abs=1e-6)) for name, p in lines[0]["classes"]
    ]
    assert rows[0]["class_3"] == rows[0]["error"] == ""


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("options", [("a.png", "--csv", "--json"), ("a.png", "-")])
def test_options_that_exclude_each_other_are_refused(monkeypatch, capsys, options):
    code, done = command(monkeypatch, capsys, *options)
    assert (code, done.out, done.err.count("\n")) == (1, "", 1)


# --- model cards and models from others --------------------------------------------------------------------


def with_card(made, target, remove=None, **settings):
    """Write the exported student with other settings, class names or keys in its model card."""
    with safe_open(made / "s.safetensors", "pt") as file:
        card, state = json.loads(file.metadata()["kdflow"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    card["class_names"] = settings.pop("class_names", card["class_names"])
    card["settings"] |= settings
    card.pop(remove, None)
    save_file(state, target, {"kdflow": json.dumps(card)})
    return target


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 300_000}, "its model card asks for images of 300,000 px; allowed: 8 to 4,096"),
        ({"image_size": 2}, "its model card asks for images of 2 px"),
        ({"class_names": ["a", "b", "c"]}, "its model card has 3 names for 2 classes"),
        ({"remove": "kdflow_version"}, "(kdflow_version: Field required); export the student again"),
        ({"model": {"family": "wrn", "options": {"depth": 10, "width": 100_000}}}, "needs far more memory than its"),
        (
            {"model": {"family": "resnet", "options": {"depth": 9}}},
            "model smaller: options (recipes/models.yaml): missing a required argument",
        ),
    ],
)
def test_a_model_card_with_wrong_values_is_refused(made, tmp_path, settings, message):
    assert message in refused(with_card(made, tmp_path / "s.safetensors", **settings))


def test_an_onnx_file_that_differs_from_its_model_card_is_refused(made, tmp_path):
    student = locate.locate_inputs(made / "data/students/kd/seed0.safetensors", None, None)
    card = read_card(made / "s.safetensors")
    format_by_name("onnx").write(fresh(STUDENT, 2, 32, 0), card, tmp_path / "s.onnx")
    assert list(predict([], tmp_path / "s.onnx")) == []
    model = onnx.load(tmp_path / "s.onnx")
    wrong_card = card.model_copy(update={"settings": student.log.settings.model_copy(update={"image_size": 64})})
    onnx.helper.set_model_props(model, {"kdflow": wrong_card.model_dump_json()})
    onnx.save(model, tmp_path / "s.onnx")
    assert "('images', 'tensor(uint8)', [3, 32, 32])" in refused(tmp_path / "s.onnx")


def test_an_onnx_file_that_cannot_be_run_is_one_line(made, tmp_path):
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=kinds.FLOAT),
        helper.make_node("Reshape", ["x", "shape"], ["logits"]),  # of 3,072 values
    ]
    ends = (
        [helper.make_tensor_value_info("images", kinds.UINT8, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ["n", 2])],
    )
    shape = helper.make_tensor("shape", kinds.INT64, [2], [7, 2])
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends, [shape]), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    helper.set_model_props(model, {"kdflow": read_card(made / "s.safetensors").model_dump_json()})
    onnx.save(model, tmp_path / "s.onnx")
    Image.new("RGB", (40, 50)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="onnxruntime cannot run it: ") as caught:
        list(predict([tmp_path / "a.png"], tmp_path / "s.onnx"))
    assert "\n" not in str(caught.value)


def test_control_characters_of_names_are_escaped(made, tmp_path, monkeypatch, capsys):
    with_card(made, tmp_path / "s.safetensors", class_names=["\x1b]0;x\x07", "ä\x9b"])
    Image.new("RGB", (40, 50)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kdflow", "predict", "a.png", "\x1b[2J", "--model", "s.safetensors"])
    with pytest.raises(SystemExit):
        cli.main()
    done = capsys.readouterr()
    assert "\\x1b]0;x\\x07" in done.out
    assert "ä\\x9b" in done.out
    assert not any(one in done.out + done.err for one in "\x1b\x07\x9b")
