"""The model card: metadata that every exported file contains. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from kdflow import __version__
from kdflow.config import RunSettings, Settings, Triple
from kdflow.core.errors import UserError, dotted
from kdflow.training.record import RunLog

METADATA_KEY = "kdflow"  # key of the model card in a file's metadata
ALLOWED_SIDES = range(8, 4097)  # pixels; the file may come from anyone, and larger images could fill the memory


class Preprocessing(Settings):
    """The steps from an image to the model's input: EXIF orientation, conversion to RGB, resizing, cropping the centre.

    `transparency` is the background of images that are not opaque. `grey16_max` is the value of grey images of 16 bits
    that becomes 255; None: such images are refused.

    `shorter_side` is the shorter side after resizing, in pixels. If it is None, both sides are resized to `image_size`.
    `mean` and `std` are for values from 0 to 1. An ONNX or .pt2 file normalises its input itself.
    """

    orientation: Literal["as in the EXIF data"] = "as in the EXIF data"
    colour: Literal["RGB"] = "RGB"
    transparency: Literal["composited over white"] = "composited over white"
    grey16_max: int | None = None
    interpolation: Literal["bilinear with antialiasing, as in Pillow"] = "bilinear with antialiasing, as in Pillow"
    shorter_side: int | None
    image_size: int
    mean: Triple
    std: Annotated[tuple[float, ...], Field(strict=False)]


class ModelCard(Settings):
    """The input, output, classes and origin of an exported model. `top1` is the accuracy on all test images in percent.

    `precision` is that of weights and activations; with int8, `top1` is that of the exported file itself.
    The hashes identify the settings, the weights, the prepared dataset and the teacher's weights.
    """

    kdflow_version: str
    input: Literal["images: uint8 [n, 3, image_size, image_size], 0 to 255"] = (
        "images: uint8 [n, 3, image_size, image_size], 0 to 255"
    )
    output: Literal["logits: float32 [n, classes]"] = "logits: float32 [n, classes]"
    precision: Literal["float32", "int8"] = "float32"
    class_names: Annotated[tuple[str, ...], Field(strict=False, min_length=2)]
    preprocessing: Preprocessing
    top1: float | None
    budget_note: str
    settings: RunSettings
    settings_sha256: str
    weights_sha256: str
    dataset_sha256: str
    teacher_sha256: str | None


def make_card(log: RunLog, class_names: list[str]) -> ModelCard:
    """Return the model card of a trained student."""
    run = log.settings
    return ModelCard(
        kdflow_version=__version__,
        class_names=tuple(class_names),
        preprocessing=Preprocessing(
            shorter_side=run.base_view.resize.side if run.base_view.resize else None,
            image_size=run.image_size,
            grey16_max=run.base_view.grey16_max,
            mean=run.base_view.mean,
            std=run.base_view.std,
        ),
        top1=log.curve[-1].top1,
        budget_note=log.budget.budget_note,
        settings=run,
        settings_sha256=log.settings_sha256,
        weights_sha256=log.weights_sha256,
        dataset_sha256=log.dataset_sha256,
        teacher_sha256=log.teacher_sha256,
    )


def parse_card(path: Path, text: str | None) -> ModelCard:
    """Parse the model card of the file `path`; `text` is its JSON, or None if the file has no model card.

    Raises:
        UserError: the file has no model card, the card was written by another version of kdflow, or it gives image
            sizes outside of `ALLOWED_SIDES`.
    """
    if text is None:
        raise UserError(f"{path}: has no model card; only files that `kdflow export` wrote have one")
    try:
        card = ModelCard.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = dotted(problem["loc"])
        raise UserError(
            f"{path}: its model card does not fit kdflow {__version__} ({key}: {problem['msg']}); "
            "export the student again"
        ) from None
    if len(card.class_names) != card.settings.classes:
        raise UserError(f"{path}: its model card has {len(card.class_names)} names for {card.settings.classes} classes")
    resize = card.settings.base_view.resize
    sides = [card.settings.image_size, *([resize.side] if resize else [])]
    wrong = next((side for side in sides if side not in ALLOWED_SIDES), None)
    if wrong is not None:
        raise UserError(
            f"{path}: its model card asks for images of {wrong:,} px; "
            f"allowed: {ALLOWED_SIDES[0]} to {ALLOWED_SIDES[-1]:,}"
        )
    return card
