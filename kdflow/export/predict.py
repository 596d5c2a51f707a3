"""Prediction of the classes of images with an exported student."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from kdflow.config import Settings
from kdflow.core.errors import UserError
from kdflow.data.decode import decode
from kdflow.data.user_folder import images_below
from kdflow.export.formats import load_exported, make_preprocessing

TOP_K = 5
BATCH = 64  # images that the model gets at once


class Prediction(Settings):
    """The `TOP_K` most likely classes of an image with their probabilities, or why the image cannot be read."""

    image: str
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def find_images(names: Iterable[str]) -> Iterator[Path]:
    """Yield the image files that each name stands for: a file, all images below a folder, or a pattern such as a/*.jpg.

    A name that stands for nothing is yielded as it is: its prediction has the error.
    """
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = images_below(path)
        elif not path.exists() and glob.has_magic(name):
            found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (a pattern may be absolute)
        else:
            found = []
        yield from map(Path, found or [name])


def predict(images: Iterable[Path], model: Path, threads: int = 1, *, trusted: bool = False) -> Iterator[Prediction]:
    """Predict the classes of image files, with the preprocessing of evaluation.

    Args:
        images: image files of any size. They are read while the predictions are used, `BATCH` at a time.
        model: a file that `kdflow export` wrote.
        threads: CPU threads.
        trusted: run a .pt2 file, which is a program and may run any code, or a model that is a user's code.

    Returns:
        One prediction for each image, in order. An image that cannot be read is a `Prediction` with an error.

    Raises:
        UserError: the model's file cannot be used.
    """
    card, run = load_exported(model, threads, trusted=trusted)
    preprocess, grey16_max = make_preprocessing(card.settings), card.settings.base_view.grey16_max

    def read(file: Path) -> torch.Tensor | Prediction:
        try:
            pixels: torch.Tensor = preprocess(_read_image(file, grey16_max))
        except UserError as error:
            return Prediction(image=str(file), error=str(error))
        return pixels

    def of_batch(files: list[Path]) -> Iterator[Prediction]:
        results = [read(file) for file in files]
        pixels = [result for result in results if isinstance(result, torch.Tensor)]
        rows = iter(run(torch.stack(pixels)).double().softmax(1) if pixels else ())
        for file, result in zip(files, results, strict=True):
            yield result if isinstance(result, Prediction) else _prediction(file, next(rows), card.class_names)

    def all_batches(remaining: Iterator[Path]) -> Iterator[Prediction]:
        while files := list(islice(remaining, BATCH)):
            yield from of_batch(files)

    return all_batches(iter(images))


def _prediction(file: Path, probabilities: torch.Tensor, class_names: tuple[str, ...]) -> Prediction:
    top = probabilities.topk(min(TOP_K, len(probabilities)))
    classes = tuple((class_names[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Prediction(image=str(file), classes=classes)


def _read_image(file: Path, grey16_max: int | None) -> Image.Image:
    """Read an image as RGB; `grey16_max` is the value of grey of 16 bits that becomes 255.

    Raises:
        UserError: it is no image, has more pixels than Pillow allows, or is grey of 16 bits and `grey16_max` is None.
    """
    if not file.is_file():
        raise UserError(f"{file}: {'is a folder, not a file' if file.is_dir() else 'no such file'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode refuses such an image
        return decode(file, grey16_max=grey16_max)
