"""What an exported file says of itself. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from kdflow import __version__
from kdflow.config import RunSettings, Settings, Triple
from kdflow.core.errors import UserError
from kdflow.training.record import RunLog

METADATA_KEY = "kdflow"  # under which a file keeps it
ALLOWED_SIDES = range(8, 4097)  # pixels: what a card from elsewhere may ask for, of image and shorter side


class Preprocessing(Settings):
    """From an image to what the file takes: RGB, resized, its centre.

    `shorter_side` is that of the resized image, none where both sides become `size`. Mean and deviation, of values from
    0 to 1, are inside an ONNX or torch file: they are told, not left to do.
    """

    colour: Literal["RGB"] = "RGB"
    interpolation: Literal["bilinear, antialiased (Pillow's)"] = "bilinear, antialiased (Pillow's)"
    shorter_side: int | None
    size: int
    mean: Triple
    std: Annotated[tuple[float, ...], Field(strict=False)]


class Card(Settings):
    """What a file is: classes, preprocessing, and the run that made it. `top1` is percent of all test images."""

    kdflow: str
    input: Literal["images: uint8 [n, 3, size, size], 0 to 255"] = "images: uint8 [n, 3, size, size], 0 to 255"
    output: Literal["logits: float32 [n, classes]"] = "logits: float32 [n, classes]"
    class_names: Annotated[tuple[str, ...], Field(strict=False, min_length=2)]
    preprocessing: Preprocessing
    top1: float | None
    budget_note: str
    settings: RunSettings
    settings_sha256: str
    weights_sha256: str
    dataset_sha256: str
    teacher_sha256: str | None


def make_card(log: RunLog, class_names: list[str]) -> Card:
    """The card of a trained model."""
    run = log.settings
    return Card(
        kdflow=__version__,
        class_names=tuple(class_names),
        preprocessing=Preprocessing(
            shorter_side=run.base_view.resize.side if run.base_view.resize else None,
            size=run.image_size,
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


def parse_card(path: Path, text: str | None) -> Card:
    """The card of a file.

    Raises:
        UserError: it has none, or one of another version.
    """
    if text is None:
        raise UserError(f"{path}: has no card of kdflow; `kdflow export` makes files that have one")
    try:
        card = Card.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{path}: its card is none of this version: {where}: {problem['msg']}") from None
    if len(card.class_names) != card.settings.classes:
        raise UserError(f"{path}: its card names {len(card.class_names)} of {card.settings.classes} classes")
    resize = card.settings.base_view.resize
    sides = [card.settings.image_size, *([resize.side] if resize else [])]
    wrong = next((side for side in sides if side not in ALLOWED_SIDES), None)
    if wrong is not None:
        raise UserError(
            f"{path}: its card asks for images of {wrong:,} px; from {ALLOWED_SIDES[0]} to {ALLOWED_SIDES[-1]:,} go"
        )
    return card
