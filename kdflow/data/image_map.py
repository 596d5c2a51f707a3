"""Images of a user that a file lists: a CSV or JSON map of paths and labels, or a ZIP archive, read in place."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from kdflow.core.errors import UserError, one_line, shorten
from kdflow.data.archives import MemberCheck, archive_errors
from kdflow.data.decode import formats
from kdflow.data.image_files import FileList, ZipFileList
from kdflow.data.readers.image_folder import is_system_name

PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}  # names of any case
COLUMNS = ("path", "label", "split")
MAX_MEMBER = 2**29  # bytes of an unpacked image in a ZIP archive


@dataclass(frozen=True)
class Row:
    """An image: its path relative to the file's folder or in the archive, its class, and its part if that is given."""

    where: str
    path: str
    label: str
    part: str | None


def read_map(file: Path) -> list[Row]:
    """Read the rows of a CSV file with a header, or of a JSON list of objects.

    Raises:
        UserError: the file cannot be read, or a row has no path, no label, another key or an unknown part.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = list(_csv_rows(file, text)) if file.suffix.lower() == ".csv" else list(_json_rows(file, text))
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}") from None
    return [_row(where, values) for where, values in rows]


def _csv_rows(file: Path, text: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    _check_columns(f"{file}: line 1", reader.fieldnames or ())
    for values in reader:
        yield f"{file}: line {reader.line_num}", values


def _json_rows(file: Path, text: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    content = json.loads(text)
    if not isinstance(content, list):
        raise UserError(f"{file}: expected a list of objects with path and label, found {type(content).__name__}")
    for number, values in enumerate(content):
        where = f"{file}: item {number}"
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected an object with path and label, found {shorten(values)}")
        _check_columns(where, values)
        yield where, values


def _check_columns(where: str, names: Iterable[str]) -> None:
    names = list(names)
    wrong = [shorten(name) for name in names if name not in COLUMNS]
    missing = [name for name in COLUMNS[:2] if name not in names]
    if wrong or missing or len(set(names)) < len(names):
        problem = f"unknown {wrong[0]}" if wrong else f"no {missing[0]}" if missing else "a name twice"
        raise UserError(f"{where}: {problem}; expected path and label, and split if there is one")


def _row(where: str, values: dict[Any, Any]) -> Row:
    if None in values:
        raise UserError(f"{where}: has more values than the header")
    path, label, given = values["path"], values["label"], values.get("split") or ""
    if not isinstance(path, str) or not path or "\0" in path:
        raise UserError(f"{where}: path: expected the name of a file, found {shorten(path)}")
    if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
        raise UserError(f"{where}: label: expected the name of a class, found {shorten(label)}")
    part = next((part for part, names in PARTS.items() if str(given).strip().lower() in names), None)
    if given and part is None:
        raise UserError(f"{where}: split: expected train, val or test, found {shorten(given)}")
    return Row(where, path, unicodedata.normalize("NFC", str(label).strip()), part)


# --- ZIP ------------------------------------------------------------------------------------------------------


def read_zip(file: Path) -> tuple[list[Row], dict[str, zipfile.ZipInfo], Counter[str]]:
    """Return the images in a ZIP archive, their entries, and the number of other files by ending.

    Folders are those of a folder of images: <class>/, or train/<class>/ and others. One folder that has all of them is
    left out. Nothing is unpacked.

    Raises:
        UserError: the archive is damaged, or has an entry that is hostile, encrypted or of an unknown compression.
    """
    suffixes = tuple(suffix for of_format in formats().values() for suffix in of_format)
    check, entries, others = MemberCheck(str(file), "", MAX_MEMBER), dict[str, zipfile.ZipInfo](), Counter[str]()
    with archive_errors(str(file)):
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise UserError(f"{file}: damaged, or not a ZIP archive ({one_line(error)})") from None
    for info in infos:
        kind = info.external_attr >> 28  # of the file's mode, which archives of Unix have
        name = check(info.filename, info.file_size, link=kind not in (0, 4, 8))
        if info.is_dir() or any(map(is_system_name, PurePosixPath(name).parts)):
            continue
        if not name.lower().endswith(suffixes):
            others[PurePosixPath(name).suffix.lower()] += 1
            continue
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            reason = "is encrypted" if info.flag_bits & 1 else "is compressed by a method other than deflate"
            raise UserError(f"{file}: {name!r} {reason}; unpack the archive")
        if info.header_offset < 0:  # zipfile allows an archive whose beginning is cut off
            raise UserError(f"{file}: damaged, its beginning is missing")
        entries[name] = info
    return list(_rows_of(file, entries)), entries, others


def _rows_of(file: Path, names: Iterable[str]) -> Iterator[Row]:
    """Take label and part from the folders of each path."""
    paths = {name: PurePosixPath(name).parts[:-1] for name in names}
    part_of = {name: part for part, names_of_part in PARTS.items() for name in names_of_part}
    while paths and len(tops := {folders[:1] for folders in paths.values()}) == 1 and all(map(len, paths.values())):
        if next(iter(tops))[0].lower() in part_of:
            break
        paths = {name: folders[1:] for name, folders in paths.items()}
    in_parts = bool(paths) and all(folders and folders[0].lower() in part_of for folders in paths.values())
    for name, folders in sorted(paths.items()):
        where = f"{file}: {name}"
        below = folders[1:] if in_parts else folders
        if not below:
            raise UserError(f"{where}: is in no class; expected <class>/*, or train/<class>/* and val/<class>/*")
        part = part_of[folders[0].lower()] if in_parts else None
        yield Row(where, name, unicodedata.normalize("NFC", below[0]), part)


# --- lists ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """Images that a file lists: `parts` [n] has the part of each, such as train, or is None if none is given."""

    folder: Path
    names: list[str]
    images: FileList
    parts: npt.NDArray[Any] | None
    other_files: Counter[str]


def list_file(file: Path) -> Listed:
    """List the images of a CSV or JSON map or of a ZIP archive.

    Raises:
        UserError: it is not valid, lists a file that is missing or twice, or has fewer than two classes.
    """
    entries, others = None, Counter[str]()
    if file.suffix.lower() == ".zip":
        rows, entries, others = read_zip(file)
    else:
        rows = read_map(file)
    names = sorted({row.label for row in rows})
    if len(names) < 2:
        raise UserError(f"{file}: lists {len(rows):,} images of {len(names)} classes, at least 2 classes are needed")
    seen = set[str]()
    for row in rows:
        if os.path.normpath(row.path) in seen:
            raise UserError(f"{row.where}: {shorten(row.path)} is listed twice")
        seen.add(os.path.normpath(row.path))
    without = [row for row in rows if row.part is None]
    if without and len(without) < len(rows):
        raise UserError(f"{without[0].where}: has no split, and other images have one")
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[row.label] for row in rows], dtype=np.int64)
    paths = np.array([os.fsencode(row.path) for row in rows])
    if entries is None:
        images = FileList(paths, np.array([_size(file.parent, row) for row in rows], dtype=np.int64), labels)
    else:
        infos = [entries[row.path] for row in rows]
        images = ZipFileList(
            paths,
            np.array([info.file_size for info in infos], dtype=np.int64),
            labels,
            offsets=np.array([info.header_offset for info in infos], dtype=np.int64),
            packed=np.array([info.compress_size for info in infos], dtype=np.int64),
            deflated=np.array([info.compress_type == zipfile.ZIP_DEFLATED for info in infos]),
            archive=file.name,
        )
    parts = None if without else np.array([row.part for row in rows])
    return Listed(file.parent, names, images, parts, others)


def _size(folder: Path, row: Row) -> int:
    try:
        return os.stat(os.path.join(folder, row.path)).st_size  # noqa: PTH116, PTH118 (slow)
    except OSError as error:
        raise UserError(f"{row.where}: {shorten(row.path)}: {error.strerror}") from None
