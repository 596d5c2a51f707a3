"""Decoding of one image file of any format to RGB, the same in training, testing and prediction."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from kdflow.core.errors import UserError, one_line

MAX_ASPECT = 200  # ratio of the sides; a line of pixels is no picture
HEIF_SUFFIXES = (".heic", ".heif")
BACKGROUND = "white"  # of transparent images


@dataclass(frozen=True)
class Decoded:
    """An image as RGB, with the properties of its file that the conversion removes.

    `transparent`: a pixel was not opaque. `grey16_max`: the largest value of a grey image of 16 bits. `colour16`: the
    file has colours of 16 bits, of which Pillow reads the upper 8.
    """

    image: Image.Image
    transparent: bool = False
    grey16_max: int | None = None
    colour16: bool = False


@cache
def formats() -> dict[str, list[str]]:
    """Return the suffixes of each format that Pillow reads without other programs, as EPS needs.

    HEIC needs a plugin, pillow-heif. AVIF is read by Pillow itself, if it was built with libavif.
    """
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    excluded = {"EPS", "WMF", "BUFR", "GRIB", "HDF5"}
    suffixes: dict[str, list[str]] = {name: [] for name in Image.OPEN if name not in excluded}
    for suffix, name in sorted(Image.registered_extensions().items()):
        if name in suffixes:
            suffixes[name].append(suffix)
    return suffixes


def plugin_hint(suffixes: Iterable[str]) -> str:
    """Return how to read files with these suffixes, if one of them needs a plugin that is not installed."""
    needed = not set(suffixes).isdisjoint(HEIF_SUFFIXES) and "HEIF" not in formats()
    return "; `pip install 'kdflow[heif]'` makes HEIC readable" if needed else ""


def decode(
    file: Path | io.BytesIO, name: str | None = None, max_pixels: int | None = None, grey16_max: int | None = None
) -> Image.Image:
    """Read an image of any format as RGB: grey of 8 and 16 bits, palette and CMYK are converted.

    Transparent pixels are composited over white. The orientation in EXIF data is applied.

    Args:
        name: the file's name for messages; None: `file`.
        max_pixels: upper bound of height times width; None: Pillow's limit.
        grey16_max: the value of grey of 16 bits that becomes 255.

    Raises:
        UserError: the file is not an image, is cut short, has too many pixels or one side much longer than the other,
            or is grey of 16 bits without `grey16_max`.
    """
    decoded = decode_and_inspect(file, name, max_pixels, grey16_max)
    if decoded.grey16_max is not None and grey16_max is None:
        raise UserError(
            f"{name or file}: cannot be read as an image: grey of 16 bits has no defined range, and "
            "base_view.grey16_max is not set: the training images had none, or were not measured"
        )
    return decoded.image


def decode_and_inspect(
    file: Path | io.BytesIO,
    name: str | None = None,
    max_pixels: int | None = None,
    grey16_max: int | None = None,
    draft_side: int | None = None,
) -> Decoded:
    """Read an image as `decode` does; without `grey16_max`, grey of 16 bits is scaled by the image's largest value.

    With `draft_side`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if both sides keep at least that number of px.

    Raises:
        UserError: as in `decode`.
    """
    try:
        with Image.open(file, formats=list(formats())) as image:
            _check_size(image, max_pixels or Image.MAX_IMAGE_PIXELS or sys.maxsize)
            if image.mode in ("I", "F"):
                raise UserError(f"pixels of 32 bits (Pillow's mode {image.mode}) have no defined range")
            if draft_side is not None:
                image.draft(None, (draft_side, draft_side))
            wide = any(";16" in str(tile[3]) for tile in image.tile)  # tiles are gone after loading
            image.load()
            _make_upright(image)
            if image.mode.startswith("I;16"):  # convert would clip at 255
                pixels = np.asarray(image)
                largest = int(pixels.max())
                return Decoded(_scale(pixels, grey16_max or largest), grey16_max=largest)
            rgb, transparent = _to_rgb(image)
            return Decoded(rgb, transparent, colour16=wide)
    except Exception as error:  # Damaged files raise exceptions of many types.
        hint = plugin_hint([Path(str(name or file)).suffix.lower()])
        raise UserError(f"{name or file}: cannot be read as an image: {one_line(error)}{hint}") from None


def _check_size(image: Image.Image, limit: int) -> None:
    short, long = sorted(image.size)
    if short * long > limit:
        raise UserError(f"{image.width} x {image.height} pixels, at most {limit:,} are allowed")
    if long > MAX_ASPECT * short:
        raise UserError(f"{image.width} x {image.height} pixels: one side is over {MAX_ASPECT} times the other")


def _scale(pixels: Any, largest: int) -> Image.Image:
    """Scale grey values [h, w] so that `largest`, and values above it, become 255."""
    scaled = np.minimum(pixels.astype(np.float64) * 255 / max(largest, 1), 255).round()
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def _to_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return the image over a white background, and whether a pixel is not opaque."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            return Image.alpha_composite(Image.new("RGBA", rgba.size, BACKGROUND), rgba).convert("RGB"), True
    return image.convert("RGB"), False


def _make_upright(image: Image.Image) -> None:
    """Turn or mirror the image as its EXIF data say; damaged EXIF data have no effect."""
    with suppress(Exception):  # The parser raises exceptions of many types.
        ImageOps.exif_transpose(image, in_place=True)
