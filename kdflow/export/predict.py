"""What an exported student says of images."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

from kdflow.config import Settings
from kdflow.core.errors import UserError
from kdflow.data.image_files import decode
from kdflow.export.formats import format_by_suffix, preprocess, read_card

TOP = 5


class Prediction(Settings):
    """The likeliest classes of an image and their probabilities, or why it could not be read."""

    image: str
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def predict(images: list[Path], model: Path, threads: int = 1, *, trusted: bool = False) -> list[Prediction]:
    """The first five classes of each image; the preprocessing is that of testing.

    Args:
        trusted: the file is from a source that is trusted like code: needed for .pt2, which is a program.

    Raises:
        UserError: the model's file cannot be used.
    """
    form, card = format_by_suffix(model), read_card(model)
    if form.SUFFIX == ".pt2" and not trusted:
        raise UserError(f"{model}: a .pt2 is a program, torch runs what it says; --trust if you know who made it")
    prepare, run, said = preprocess(card.settings), form.runner(model, card, threads), []
    for file in images:
        try:
            pixels = prepare(_opened(file))
        except UserError as error:
            said.append(Prediction(image=str(file), error=str(error)))
            continue
        shares = run(pixels[None])[0].double().softmax(0)
        top = shares.topk(min(TOP, len(shares)))
        classes = tuple(
            (card.class_names[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        )
        said.append(Prediction(image=str(file), classes=classes))
    return said


def _opened(file: Path) -> Image.Image:
    """An image as RGB, if it is one and of at most Pillow's bound of pixels."""
    if not file.is_file():
        raise UserError(f"{file}: {'is a folder, not a file' if file.is_dir() else 'no such file'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what it warns of is refused
        return decode(file)
