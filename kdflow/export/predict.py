"""Prediction of an image's class with an exported student."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

from kdflow.config import Settings
from kdflow.config.user_code import is_import_path
from kdflow.core.errors import UserError
from kdflow.data.decode import decode
from kdflow.export.formats import format_by_suffix, make_preprocessing, read_card

TOP_K = 5


class Prediction(Settings):
    """The `TOP_K` most likely classes of an image with their probabilities, or why the image cannot be read."""

    image: str
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def predict(images: list[Path], model: Path, threads: int = 1, *, trusted: bool = False) -> list[Prediction]:
    """Predict the classes of image files, with the preprocessing of evaluation.

    Args:
        images: image files of any size.
        model: a file that `kdflow export` wrote.
        threads: CPU threads.
        trusted: run a .pt2 file, which is a program and may run any code, or a model that is a user's code.

    Raises:
        UserError: the model's file cannot be used. An image that cannot be read is a `Prediction` with an error.
    """
    file_format, card = format_by_suffix(model), read_card(model)
    if file_format.SUFFIX == ".pt2" and not trusted:
        raise UserError(f"{model}: a .pt2 file is a program that may run any code; add --trust if you trust its source")
    if is_import_path(card.settings.model.family) and file_format.SUFFIX == ".safetensors" and not trusted:
        raise UserError(f"{model}: its model is code, {card.settings.model.family}; add --trust if you trust it")
    preprocess, run = make_preprocessing(card.settings), file_format.runner(model, card, threads)
    predictions = []
    for file in images:
        try:
            pixels = preprocess(_read_image(file, card.settings.base_view.grey16_max))
        except UserError as error:
            predictions.append(Prediction(image=str(file), error=str(error)))
            continue
        probabilities = run(pixels[None])[0].double().softmax(0)
        top = probabilities.topk(min(TOP_K, len(probabilities)))
        classes = tuple(
            (card.class_names[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        )
        predictions.append(Prediction(image=str(file), classes=classes))
    return predictions


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
