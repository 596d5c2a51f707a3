"""What the teacher says of every flip and crop of every training image: for all methods, seeds and epochs.

Row i * views + v of the store is view v of image i; v counts flip, then the window's row, then its column.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from kdflow import config
from kdflow.config import RunSettings
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.data import Images, ImageSet
from kdflow.methods.views import BaseViewTransform
from kdflow.models.features import FeatureExtractor, Outputs
from kdflow.training.epoch_plan import EpochPlan, StepPlan
from kdflow.training.teacher_logits import BASE_VIEW, TeacherSource, ViewImages, store
from kdflow.training.teacher_logits.store import CacheKey

BATCH = 128  # views that the teacher is asked of at once
BLOCK = 16  # images between two looks at how far it is


def views_per_image(base_view: config.BaseView) -> int:
    """How many views an image has.

    Raises:
        UserError: they cannot be counted.
    """
    if base_view.resize is not None:
        raise UserError("params.yaml: logits: images from files have no end of views to ask about ahead; take replay")
    return (2 * base_view.crop + 1) ** 2 * (2 if base_view.flip else 1)


def store_rows(
    index: Int64[Tensor, " n"], shift: Int64[Tensor, "n 2"], flip: Bool[Tensor, " n"], base_view: config.BaseView
) -> Int64[Tensor, " n"]:
    """The rows of views in the store."""
    side = 2 * base_view.crop + 1
    return index * views_per_image(base_view) + (flip.long() * side + shift[:, 0]) * side + shift[:, 1]


def store_shape(run: RunSettings) -> tuple[int, int]:
    """Rows of the store, and classes."""
    return run.train_images * views_per_image(run.base_view), run.classes


def read_views(path: Path, run: RunSettings, dtype: str, about: CacheKey) -> npt.NDArray[Any]:
    """The logits of the store at `path`, which must be what the run needs.

    Raises:
        UserError: it is missing, damaged, or of something else.
    """
    try:
        return store.read_store(path, store_shape(run), dtype, about)
    except FileNotFoundError:
        raise UserError(f"{path}: no such store; `dvc repro logits` fills it") from None
    except store.StoreError as error:
        raise UserError(f"{error}; `dvc repro -f logits` fills it anew") from None


def fill(
    path: Path,
    ask: Callable[[Tensor], Tensor],
    images: Images,
    run: RunSettings,
    dtype: str,
    about: CacheKey,
    tell: Callable[[int], None],
) -> None:
    """Ask the teacher about every view and write the store to `path`; goes on where it was interrupted.

    Args:
        tell: called with the number of images done.
    """
    views, kinds, device = run.base_view, views_per_image(run.base_view), images.labels.device
    assert isinstance(images, ImageSet)
    base, width = BaseViewTransform(views, device), run.classes * np.dtype(dtype).itemsize
    shift, flip = _all_views(views, device)
    done_file = path.with_suffix(".done")
    done, start = _begun(path, done_file, store_shape(run), dtype, about)
    with path.open("r+b") as file:
        file.seek(start + done * kinds * width)
        for first in range(done, len(images), BLOCK):
            tell(first)
            end = min(first + BLOCK, len(images))
            with torch.inference_mode():
                said = [
                    ask(base(images.images[row // kinds], shift[row % kinds], flip[row % kinds]))
                    for row in _batches(first * kinds, end * kinds, device)
                ]
            file.write(torch.cat(said).to("cpu", getattr(torch, dtype)).numpy().data)
            file.flush()
            os.fsync(file.fileno())
            files.write_text(done_file, f"{end} {start}")
    tell(len(images))
    store.finalize(path)
    done_file.unlink()


def _begun(path: Path, done_file: Path, shape: tuple[int, int], dtype: str, about: CacheKey) -> tuple[int, int]:
    """How many images an earlier attempt has done, and at which byte the logits start."""
    if not done_file.exists():
        files.write_text(done_file, f"0 {store.create_store(path, shape, dtype, about)}")
    done, start = done_file.read_text().split()
    return int(done), int(start)


def _batches(start: int, end: int, device: torch.device) -> Iterator[Int64[Tensor, " b"]]:
    for first in range(start, end, BATCH):
        yield torch.arange(first, min(first + BATCH, end), device=device)


def _all_views(base_view: config.BaseView, device: torch.device) -> tuple[Int64[Tensor, "v 2"], Bool[Tensor, " v"]]:
    side = range(2 * base_view.crop + 1)
    flips = (False, True) if base_view.flip else (False,)
    every = [(f, y, x) for f in flips for y in side for x in side]
    return torch.tensor([v[1:] for v in every], device=device), torch.tensor([v[0] for v in every], device=device)


class StoredViews(TeacherSource):
    """Of x it is read from the store, unless features are needed; about other views the teacher is asked."""

    def __init__(self, ask: FeatureExtractor, logits: npt.NDArray[Any], base_view: config.BaseView) -> None:
        super().__init__(ask)
        self.logits, self.base_view = logits, base_view
        self.rows = np.empty(0, np.int64)

    def begin(self, epoch: int, plan: EpochPlan) -> None:  # noqa: ARG002
        """Find the rows of all of the epoch's views: once, since the plan lies on the device."""
        self.rows = store_rows(plan.order, plan.shift, plan.flip, self.base_view).cpu().numpy()

    def __call__(self, row: StepPlan, views: ViewImages) -> dict[str, Outputs]:
        """x read, the others in one pass."""
        read = BASE_VIEW in views and self.is_stored(BASE_VIEW)
        found = self.online({name: images for name, images in views.items() if name != BASE_VIEW or not read})
        if read:
            mine = self.rows[row.offset : row.offset + len(views[BASE_VIEW])]
            found[BASE_VIEW] = self.stored(self.logits[mine], views[BASE_VIEW].device)
        return found
