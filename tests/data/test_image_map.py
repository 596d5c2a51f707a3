"""Images that a CSV or JSON map lists, or that are in a ZIP archive: the same dataset as their folder."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdflow import config
from kdflow.config import UserFolder
from kdflow.core.errors import UserError
from kdflow.data import load, user_folder
from kdflow.data.image_files import ZipFileList

RECIPE = config.load_recipes(config.PACKAGE.parent).user_folder
CPU = torch.device("cpu")
PARTS = {"train": 5, "val": 3, "test": 2}


@pytest.fixture
def photos(tmp_path):
    random = np.random.RandomState(0)
    for part, count in PARTS.items():
        for name in ("cat ä", "dog"):
            folder = tmp_path / "photos" / part / name / "deep/er"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.randint(0, 256, (40, 40, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def _files(photos):
    """Return path, class and part of each image, with paths relative to the folder above."""
    files = sorted(photos.rglob("*.png"))
    return [(f"photos/{file.relative_to(photos)}", file.relative_to(photos).parts[1], file.relative_to(photos).parts[0])
            for file in files]  # fmt: skip


def _prepare(path, name="a", **settings):
    out = Path(path).parent / f"{name}.h5"
    return user_folder.prepare(UserFolder(folder=str(path), image_size=32, **settings), RECIPE, out), out


def _csv(photos, columns=3, name="map.csv"):
    file = photos.parent / name
    lines = [",".join(("path", "label", "split")[:columns]), *(",".join(row[:columns]) for row in _files(photos))]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return file


def _zip(photos, name="photos.zip", above="photos/", compression=zipfile.ZIP_DEFLATED):
    file = photos.parent / name
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("__MACOSX/photos/._0.png", b"x")
        archive.writestr(f"{above}notes.txt", b"x")
        for path, _, _ in _files(photos):
            archive.write(photos.parent / path, path.removeprefix("photos/") if not above else path)
    return file


def _pixels(file, images=10):
    loaded = load(file, images, CPU)
    view = config.BaseView(
        crop=0, flip=False, resize=config.Resize(side=32, area=None), mean=(0.0,) * 3, std=(1.0,) * 3
    )
    return [torch.cat(list(split.for_testing(4, view, slice(0, len(split))))) for split in (loaded.train, loaded.test)]


def test_a_map_gives_the_images_of_the_folder(photos):
    folder, from_folder = _prepare(photos)
    mapped, from_map = _prepare(_csv(photos), "b")
    file = photos.parent / "map.json"
    file.write_text(json.dumps([{"path": p, "label": label, "split": part} for p, label, part in _files(photos)]))
    from_json = _prepare(file, "c")[0]
    assert mapped.sha256 == from_json.sha256
    assert mapped.name == "map"
    assert mapped.class_names == folder.class_names == ("cat ä", "dog")
    assert (mapped.data.train_images, mapped.data.test_images) == (10, 6)
    assert (mapped.base_view, mapped.notes) == (folder.base_view, folder.notes)
    for one, other in zip(_pixels(from_map), _pixels(from_folder), strict=True):
        assert torch.equal(one, other)


def test_a_map_without_a_split_is_split_by_class(photos):
    prepared, out = _prepare(_csv(photos, columns=2))
    assert (prepared.data.train_images, prepared.data.test_images) == (16, 4)
    assert load(out, 16, CPU).test.labels.bincount().tolist() == [2, 2]
    assert _prepare(_csv(photos, columns=2), "b", split_seed=1)[0].sha256 != prepared.sha256


def test_the_test_part_is_chosen_as_in_a_folder(photos):
    assert _prepare(_csv(photos), test_part="test")[0].data.test_images == 4
    final = photos.parent / "final.h5"
    source = UserFolder(folder=str(_csv(photos)), image_size=32)
    prepared = user_folder.prepare(source, RECIPE, photos.parent / "b.h5", final_test=final)
    assert (prepared.data.test_images, len(load(final, 10, CPU).test)) == (6, 4)
    with pytest.raises(UserError, match=r"map\.csv: lists no images of test: they have no split"):
        _prepare(_csv(photos, columns=2), test_part="test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n", "map.csv: line 1: unknown 'file'; expected path and label, and split if there is one"),
        ("path,split\n", "line 1: no label"),
        ("path,label,label\n", "line 1: a name twice"),
        ("", "line 1: no path"),
        ("path,label\na.png,x,train\n", "line 2: has more values than the header"),
        ("path,label\n,x\n", "line 2: path: expected the name of a file, found ''"),
        ("path,label\na.png\n", "line 2: label: expected the name of a class, found None"),
        ("path,label,split\na.png,x,dev\n", "line 2: split: expected train, val or test, found 'dev'"),
        ("path,label,split\na.png,x,train\nb.png,y\n", "line 3: has no split, and other images have one"),
        ("path,label\na.png,x\n./a.png,y\n", "line 3: './a.png' is listed twice"),
        ("path,label\na.png,x\nb.png,y\n", "line 2: 'a.png': No such file or directory"),
        ("path,label\na.png,x\nb.png,x\n", "map.csv: lists 2 images of 1 classes, at least 2 classes are needed"),
        ('path,label\n"a.png,x\n', "map.csv: cannot be read: unexpected end of data"),
    ],
)
def test_a_wrong_map_is_one_line(tmp_path, text, message):
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        _prepare(tmp_path / "map.csv")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected a list of objects with path and label, found dict"),
        ("[3]", "item 0: expected an object with path and label, found 3"),
        ('[{"path": "a.png", "label": true}]', "item 0: label: expected the name of a class, found True"),
        ('[{"path": 3, "label": "x"}]', "item 0: path: expected the name of a file, found 3"),
        ("[" * 10**5, "map.json: cannot be read"),
        ('[{"path": "a"', "map.json: cannot be read: Expecting ',' delimiter"),
    ],
)
def test_wrong_json_is_one_line(tmp_path, content, message):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(UserError) as caught:
        _prepare(tmp_path / "map.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parts_that_are_needed(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
    (tmp_path / "map.csv").write_text("path,label,split\na.png,x,val\nb.png,y,val\n")
    with pytest.raises(UserError, match=r"map\.csv: lists no images of train"):
        _prepare(tmp_path / "map.csv")
    (tmp_path / "photos.txt").write_text("")
    with pytest.raises(
        UserError, match=r"photos\.txt: is a file; expected a folder of images, or a file \.csv, \.json, "
    ):
        _prepare(tmp_path / "photos.txt")


# --- ZIP ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("above", ["", "photos/"])
def test_a_zip_archive_gives_the_images_of_the_folder(photos, above, compression):
    folder, from_folder = _prepare(photos)
    before = {file.name for file in photos.parent.iterdir()}
    prepared, out = _prepare(_zip(photos, above=above, compression=compression), "b")
    assert {file.name for file in photos.parent.iterdir()} == {*before, "photos.zip", "b.h5"}, "nothing is unpacked"
    assert prepared.notes == (*folder.notes, "1 file of other kinds left out (.txt 1)")
    assert (prepared.name, prepared.class_names, prepared.base_view) == ("photos", folder.class_names, folder.base_view)
    for one, other in zip(_pixels(out), _pixels(from_folder), strict=True):
        assert torch.equal(one, other)
    assert isinstance(load(out, 10, CPU).train.files, ZipFileList)
    if not above:
        assert prepared.sha256 == folder.sha256


def test_a_zip_archive_of_classes_alone_is_split(photos):
    file = photos.parent / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for i, (path, label, _) in enumerate(_files(photos)):
            archive.write(photos.parent / path, f"a/b/{label}/{i}.png")
    prepared, _ = _prepare(file)
    assert (prepared.class_names, prepared.data.train_images, prepared.data.test_images) == (("cat ä", "dog"), 16, 4)


def test_an_archive_that_has_changed_is_refused(photos):
    file = _zip(photos)
    _, out = _prepare(file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"photos\.zip: has 1000 bytes, at least"):
        load(out, 10, CPU)
    file.write_bytes(bytes(10**6))
    with pytest.raises(UserError, match=r"photos\.zip: photos/.*: damaged, or the archive has changed; `dvc repro -f"):
        _pixels(out)
    file.unlink()
    with pytest.raises(UserError, match=r"photos\.zip: No such file or directory, but its images were listed"):
        load(out, 10, CPU)


def _entry(name, mode=0, **attributes):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (_entry("../dog/a.png"), "'../dog/a.png' is outside of the archive/"),
        (_entry("/dog/a.png"), "'/dog/a.png' is outside of the archive/"),
        (_entry("dog/a.png", mode=0o120777), "'dog/a.png' is a link, or not a file"),
        (_entry("a.png"), "a.png: is in no class; expected <class>/*"),
        (
            _entry("dog/a.png", compress_type=zipfile.ZIP_LZMA),
            "'dog/a.png' is compressed by a method other than",
        ),
    ],
)
def test_hostile_entries_are_refused(photos, entry, message):
    file = _zip(photos, above="")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(entry, b"x")
    with pytest.raises(UserError) as caught:
        _prepare(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_archives_are_refused(photos):
    file = _zip(photos)
    content = file.read_bytes()
    for damaged in (b"", content[:-30], content[len(content) // 2 :], b"no archive" * 100):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"photos\.zip"):
            _prepare(file)
    encrypted = bytearray(content)
    encrypted[content.rindex(b"PK\1\2") + 8] |= 1
    file.write_bytes(encrypted)
    with pytest.raises(UserError, match="is encrypted; unpack the archive"):
        _prepare(file)


def test_an_entry_that_unpacks_to_more_than_it_states_is_not_read(photos):
    _, out = _prepare(_zip(photos))
    files = load(out, 10, CPU).train.files
    smaller = ZipFileList(**{**vars(files), "sizes": files.sizes - 1})
    with pytest.raises(UserError, match="damaged, or the archive has changed"):
        smaller.open(photos.parent, 0)
