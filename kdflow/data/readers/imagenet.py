"""ImageNet (ILSVRC 2012; Russakovsky et al., 2015) from the official archives, or from the tree that unpacking gives.

Nothing is downloaded and nothing unpacked: of the archives an index is written, and the images are read in place. Both
forms give the same list, in the same order, with the same hash: classes are numbered and named by their WordNet ids.
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
LARGEST = 2**26  # bytes of one image or of a devkit's file: none has as many
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"

ArchiveRow = tuple[str, str, int, int]
"""Class, name, size and offset of one image."""


def read(spec: DatasetSource, folder: Path | None, downloads: Path) -> Splits:
    """List `folder`, which holds train/ and val/ or the archives; its validation images are the test set.

    The devkit, which says the labels of the validation images, must have the checksum `spec.md5`.
    """
    if folder is None or (folder / "train").is_dir() or not (folder / TRAIN).is_file():
        if folder is not None and folder.is_dir() and not (folder / "train").is_dir():
            raise UserError(f"data_folder: {folder}: holds neither train/ and val/ nor {TRAIN}, {VAL} and {DEVKIT}")
        return image_folder.read(spec, folder, downloads)
    for name in (VAL, DEVKIT):
        if not (folder / name).is_file():
            raise UserError(f"data_folder: {folder}: {name} is not beside {TRAIN}")
    ids, truth = _devkit(folder / DEVKIT, spec)
    train = sorted(_train(folder / TRAIN, set(ids.values()), spec.train_images))
    val = sorted(_val(folder / VAL, [ids[number] for number in truth]))
    names = sorted({row[0] for row in train})
    return Splits(_listing("train", TRAIN, train, names), _listing("val", VAL, val, names), names, folder.resolve())


def _devkit(archive: Path, spec: DatasetSource) -> tuple[dict[int, str], list[int]]:
    """The WordNet id of each of the challenge's numbers, and the number of every validation image in order."""
    check_md5(archive, spec.md5)
    parts: dict[str, bytes] = {}
    with gzip.open(archive) as file:
        for name, info in tar_members(file, MemberCheck(str(archive), "ILSVRC2012_devkit_t12", LARGEST)):
            if name in (META, TRUTH):
                parts[name] = read_member(file, info, str(archive))
    try:
        ids = _wordnet_ids(parts[META])
        truth = [int(line) for line in parts[TRUTH].split()]
        unknown = set(truth) - set(ids)
    except Exception as error:  # a damaged file fails in any way it likes
        raise UserError(f"{archive}: {META} or {TRUTH}: not there, or damaged ({one_line(error)})") from None
    if unknown:
        raise UserError(f"{archive}: {TRUTH}: {min(unknown)} is no class of {META}")
    return ids, truth


def _wordnet_ids(meta: bytes) -> dict[int, str]:
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    leaves = [row for row in np.atleast_1d(synsets) if row["num_children"] == 0]  # the others are kinds of classes
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}


def _train(archive: Path, ids: set[str], images: int) -> list[ArchiveRow]:
    """A tar with a tar for each class; `images` are expected."""
    rows: list[ArchiveRow] = []

    def classes() -> Iterator[int]:
        for outer in inner:
            name = outer.name.removesuffix(".tar")
            file.seek(outer.offset_data)
            end = outer.offset_data + outer.size
            before = len(rows)
            for image, info in tar_members(file, MemberCheck(f"{archive}: {outer.name}", "", LARGEST), end):
                if not re.fullmatch(rf"{name}_\d+\.JPEG", image):
                    raise UserError(f"{archive}: {outer.name}: {image}: expected {name}_<number>.JPEG")
                rows.append((name, image, info.size, info.offset_data))
            if len(rows) == before:
                raise UserError(f"{archive}: {outer.name}: no images in it")
            yield len(rows) - before

    with archive.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        inner = [info for _, info in tar_members(file, MemberCheck(str(archive), "", size), size)]
        odd = {info.name for info in inner} ^ {f"{name}.tar" for name in ids}
        if odd:
            raise UserError(f"{archive}: {min(odd)}: the members must be a tar for each class of the devkit, no more")
        for _ in track("train", classes(), images):
            pass
    return rows


def _val(archive: Path, labels: list[str]) -> list[ArchiveRow]:
    """A tar of images, whose names are numbers in the order of `labels`."""
    with archive.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        members = list(tar_members(file, MemberCheck(str(archive), "", LARGEST), size))
    expected = [f"ILSVRC2012_val_{place + 1:08}.JPEG" for place in range(len(labels))]
    odd = {name for name, _ in members} ^ set(expected)
    if odd:
        raise UserError(f"{archive}: {min(odd)}: the members must be the {len(labels):,} images of {TRUTH}, no more")
    members.sort(key=lambda member: member[0])
    return [(label, name, info.size, info.offset_data) for label, (name, info) in zip(labels, members, strict=True)]


def _listing(part: str, archive: str, rows: list[ArchiveRow], names: list[str]) -> TarFileList:
    numbers = {name: number for number, name in enumerate(names)}
    return TarFileList(
        paths=np.array([f"{part}/{name}/{image}".encode() for name, image, _, _ in rows]),
        sizes=np.array([size for _, _, size, _ in rows], dtype=np.int64),
        labels=np.array([numbers[name] for name, *_ in rows], dtype=np.int64),
        offsets=np.array([offset for *_, offset in rows], dtype=np.int64),
        archive=archive,
    )
