"""ImageNet (ILSVRC 2012; Russakovsky et al., 2015) from the official archives or their unpacked folder.

Nothing is downloaded or unpacked: the images are listed and later read in place. Both forms give the same list in the
same order with the same hash. Classes are sorted by WordNet id and named by it.
"""

from __future__ import annotations

import gzip
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kdflow.config import DatasetSource
from kdflow.core.errors import UserError, one_line
from kdflow.core.progress import track
from kdflow.data import Splits
from kdflow.data.archives import MemberCheck, check_md5, read_member, tar_members
from kdflow.data.image_files import TarFileList
from kdflow.data.readers import image_folder

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
MAX_MEMBER = 2**26  # bytes; images and files of the devkit are smaller
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"

ArchiveRow = tuple[str, str, int, int]
"""Class, name, size and offset of one image."""


def read(spec: DatasetSource, folder: Path | None, downloads: Path) -> Splits:
    """List the images of `folder`, which has train/ and val/ or the archives; the validation images are the test set.

    The devkit, which has the labels of the validation images, must have the md5 `spec.md5`.
    """
    if folder is None or (folder / "train").is_dir() or not (folder / TRAIN).is_file():
        if folder is not None and folder.is_dir() and not (folder / "train").is_dir():
            raise UserError(f"data_folder: {folder}: has neither train/ and val/ nor {TRAIN}, {VAL} and {DEVKIT}")
        return image_folder.read(spec, folder, downloads)
    for name in (VAL, DEVKIT):
        if not (folder / name).is_file():
            raise UserError(f"data_folder: {folder}: has {TRAIN} but not {name}")
    ids, truth = _read_devkit(folder / DEVKIT, spec)
    train = sorted(_read_train(folder / TRAIN, set(ids.values()), spec.train_images))
    val = sorted(_read_val(folder / VAL, [ids[number] for number in truth]))
    names = sorted({row[0] for row in train})
    return Splits(_file_list("train", TRAIN, train, names), _file_list("val", VAL, val, names), names, folder.resolve())


def _read_devkit(archive: Path, spec: DatasetSource) -> tuple[dict[int, str], list[int]]:
    """Return the WordNet id of each ILSVRC2012_ID, and the ILSVRC2012_ID of each validation image in order."""
    check_md5(archive, spec.md5)
    parts: dict[str, bytes] = {}
    with gzip.open(archive) as file:
        for name, info in tar_members(file, MemberCheck(str(archive), "ILSVRC2012_devkit_t12", MAX_MEMBER)):
            if name in (META, TRUTH):
                parts[name] = read_member(file, info, str(archive))
    try:
        ids = _wordnet_ids(parts[META])
        truth = [int(line) for line in parts[TRUTH].split()]
        unknown = set(truth) - set(ids)
    except Exception as error:  # Damaged files raise exceptions of many types.
        raise UserError(f"{archive}: {META} or {TRUTH}: missing or damaged ({one_line(error)})") from None
    if unknown:
        raise UserError(f"{archive}: {TRUTH}: {min(unknown)} is not a class of {META}")
    return ids, truth


def _wordnet_ids(meta: bytes) -> dict[int, str]:
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    leaves = [row for row in np.atleast_1d(synsets) if row["num_children"] == 0]  # the others are hypernyms
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}


def _read_train(archive: Path, ids: set[str], images: int) -> list[ArchiveRow]:
    """List the training images from a tar with a tar per class; `images` is their expected number."""
    rows: list[ArchiveRow] = []

    def classes() -> Iterator[int]:
        for inner in class_tars:
            name = inner.name.removesuffix(".tar")
            file.seek(inner.offset_data)
            end = inner.offset_data + inner.size
            before = len(rows)
            for image, info in tar_members(file, MemberCheck(f"{archive}: {inner.name}", "", MAX_MEMBER), end):
                if not re.fullmatch(rf"{name}_\d+\.JPEG", image):
                    raise UserError(f"{archive}: {inner.name}: {image}: expected {name}_<number>.JPEG")
                rows.append((name, image, info.size, info.offset_data))
            if len(rows) == before:
                raise UserError(f"{archive}: {inner.name}: has no images")
            yield len(rows) - before

    with archive.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        class_tars = [info for _, info in tar_members(file, MemberCheck(str(archive), "", size), size)]
        wrong = {info.name for info in class_tars} ^ {f"{name}.tar" for name in ids}
        if wrong:
            raise UserError(f"{archive}: {min(wrong)}: the members must be one tar for each class of the devkit")
        for _ in track("train", classes(), images):
            pass
    return rows


def _read_val(archive: Path, labels: list[str]) -> list[ArchiveRow]:
    """List the validation images from a tar; their file names are numbered in the order of `labels`."""
    with archive.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        members = list(tar_members(file, MemberCheck(str(archive), "", MAX_MEMBER), size))
    expected = [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, len(labels) + 1)]
    wrong = {name for name, _ in members} ^ set(expected)
    if wrong:
        raise UserError(f"{archive}: {min(wrong)}: the members must be the {len(labels):,} images of {TRUTH}")
    members.sort(key=lambda member: member[0])
    return [(label, name, info.size, info.offset_data) for label, (name, info) in zip(labels, members, strict=True)]


def _file_list(part: str, archive: str, rows: list[ArchiveRow], names: list[str]) -> TarFileList:
    numbers = {name: number for number, name in enumerate(names)}
    return TarFileList(
        paths=np.array([f"{part}/{name}/{image}".encode() for name, image, _, _ in rows]),
        sizes=np.array([size for _, _, size, _ in rows], dtype=np.int64),
        labels=np.array([numbers[name] for name, *_ in rows], dtype=np.int64),
        offsets=np.array([offset for *_, offset in rows], dtype=np.int64),
        archive=archive,
    )
