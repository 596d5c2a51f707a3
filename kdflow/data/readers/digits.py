"""Handwritten digits: 1,797 scans of 8x8 pixels from the UCI repository, included in scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from kdflow.config import DatasetSource
from kdflow.core.errors import UserError
from kdflow.data import Split, Splits, balanced_order


def read(spec: DatasetSource, folder: Path | None, downloads: Path) -> Splits:  # noqa: ARG001 (a reader's signature)
    """Resize the scans to `spec.image_size` as RGB; `spec.train_images` are for training, the others for testing."""
    from sklearn.datasets import load_digits

    if folder is not None:
        raise UserError("data_folder: digits come with scikit-learn; set it to null")
    scans, labels = load_digits(return_X_y=True)
    size = (spec.image_size, spec.image_size)
    gray = (scans.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)  # values from 0 to 16
    # Pillow resizes 8-bit images in integer arithmetic, with the same result on every machine.
    resized = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in gray])
    images = np.repeat(resized[..., None], 3, axis=-1)
    labels = labels.astype(np.int64)
    order = balanced_order(labels)
    parts = [np.sort(order[: spec.train_images]), np.sort(order[spec.train_images :])]
    train, test = (Split(images[part], labels[part]) for part in parts)
    return Splits(train, test, [str(digit) for digit in range(10)])
