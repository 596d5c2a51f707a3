"""Teacher logits for all flips and crops of all training images, for all methods, seeds and epochs.

Row i * views + v of the store is view v of image i; v counts flip, then the row of the crop, then its column.
"""

from __future__ import annotations

import hashlib
import itertools
import json
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
from kdflow.models.features import Outputs
from kdflow.training.epoch_plan import EpochPlan, StepPlan
from kdflow.training.teacher_logits import BASE_VIEW, TeacherSource, ViewImages, store
from kdflow.training.teacher_logits.store import CacheKey

BATCH = 128  # views of a forward pass of the teacher
BLOCK = 16  # images between two progress updates


def views_per_image(base_view: config.BaseView) -> int:
    """Return the number of views of an image.

    Raises:
        UserError: it is not finite, since images of files are resized at random.
    """
    if base_view.resize is not None:
        raise UserError(
            "params.yaml: teacher_logits: views is not for images from files, which are cropped at random sizes; "
            "choose replay"
        )
    return (2 * base_view.crop + 1) ** 2 * (2 if base_view.flip else 1)


def store_rows(
    index: Int64[Tensor, " n"], shift: Int64[Tensor, "n 2"], flip: Bool[Tensor, " n"], base_view: config.BaseView
) -> Int64[Tensor, " n"]:
    """Return the rows of the store for views of images, given by their crops and flips."""
    side = 2 * base_view.crop + 1
    return index * views_per_image(base_view) + (flip.long() * side + shift[:, 0]) * side + shift[:, 1]


def store_shape(run: RunSettings) -> tuple[int, int]:
    """Return the number of rows of the store, and of classes."""
    return run.train_images * views_per_image(run.base_view), run.classes


def read_views(path: Path, run: RunSettings, dtype: str, key: CacheKey) -> npt.NDArray[Any]:
    """Return the logits of the store at `path`.

    Raises:
        UserError: the file is missing, damaged, or has another cache key.
    """
    try:
        return store.read_store(path, store_shape(run), dtype, key)
    except FileNotFoundError:
        raise UserError(f"{path}: no such store; `dvc repro logits` fills it") from None
    except store.StoreError as error:
        raise UserError(f"{error}; `dvc repro -f logits` fills it again") from None


def fill(
    path: Path,
    teacher: Callable[[Tensor], Tensor],
    images: Images,
    run: RunSettings,
    dtype: str,
    key: CacheKey,
    on_progress: Callable[[int], None],
) -> None:
    """Compute the teacher's logits for all views and write the store to `path`; resumes an interrupted attempt.

    Args:
        path: the file to write.
        teacher: returns the logits of a batch of normalised images.
        images: the training images.
        run: the settings of a run that reads the store.
        dtype: the dtype of the stored logits.
        key: the cache key, written to the file.
        on_progress: called with the number of images done.
    """
    base_view, views, device = run.base_view, views_per_image(run.base_view), images.labels.device
    assert isinstance(images, ImageSet)
    transform, row_bytes = BaseViewTransform(base_view, device), run.classes * np.dtype(dtype).itemsize
    shift, flip = _all_views(base_view, device)
    done_file = path.with_suffix(".done")
    block_bytes = views * row_bytes
    start, blocks = _resume(path, done_file, store_shape(run), dtype, key, block_bytes)
    done = blocks[-1][0] if blocks else 0
    with path.open("r+b") as file:
        file.seek(start + done * block_bytes)
        for first in range(done, len(images), BLOCK):
            on_progress(first)
            end = min(first + BLOCK, len(images))
            with torch.inference_mode():
                logits = [
                    teacher(transform(images.images[row // views], shift[row % views], flip[row % views]))
                    for row in _batches(first * views, end * views, device)
                ]
            rows = torch.cat(logits).to("cpu", getattr(torch, dtype)).numpy().tobytes()
            file.write(rows)
            file.flush()
            os.fsync(file.fileno())
            blocks.append((end, hashlib.sha256(rows).hexdigest()))
            files.write_text(done_file, json.dumps({"start": start, "blocks": blocks}))
    on_progress(len(images))
    store.finalize(path)
    done_file.unlink()


def _resume(
    path: Path, done_file: Path, shape: tuple[int, int], dtype: str, key: CacheKey, image_bytes: int
) -> tuple[int, list[tuple[int, str]]]:
    """Return the offset of the logits in the file, and the blocks of an earlier attempt: last image + 1 and SHA-256.

    A file that differs from the hash of one of its blocks is written from the start.
    """
    try:
        state = json.loads(done_file.read_text())
        start, blocks = int(state["start"]), [(int(end), str(sha256)) for end, sha256 in state["blocks"]]
        if path.stat().st_size >= start + int(np.prod(shape)) * np.dtype(dtype).itemsize:
            with path.open("rb") as file:
                file.seek(start)
                ends = [0, *(end for end, _ in blocks)]
                sizes = [(end - first) * image_bytes for first, end in itertools.pairwise(ends)]
                hashes = [hashlib.sha256(file.read(size)).hexdigest() for size in sizes]
            store.check_header(path, start, shape, dtype, key)
            if hashes == [sha256 for _, sha256 in blocks]:
                return start, blocks
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the notes or the store are missing or damaged
    done_file.unlink(missing_ok=True)
    return store.create_store(path, shape, dtype, key), []


def _batches(start: int, end: int, device: torch.device) -> Iterator[Int64[Tensor, " b"]]:
    for first in range(start, end, BATCH):
        yield torch.arange(first, min(first + BATCH, end), device=device)


def _all_views(base_view: config.BaseView, device: torch.device) -> tuple[Int64[Tensor, "v 2"], Bool[Tensor, " v"]]:
    side = range(2 * base_view.crop + 1)
    flips = (False, True) if base_view.flip else (False,)
    views = [(f, y, x) for f in flips for y in side for x in side]
    return torch.tensor([v[1:] for v in views], device=device), torch.tensor([v[0] for v in views], device=device)


class StoredViews(TeacherSource):
    """Teacher logits of x from the store, unless features are needed; `others` gives those of other views."""

    def __init__(self, others: TeacherSource, logits: npt.NDArray[Any], base_view: config.BaseView) -> None:
        super().__init__(others.teacher)
        self.others, self.counts = others, others.counts
        self.logits, self.base_view = logits, base_view
        self.rows = np.empty(0, np.int64)

    def begin(self, epoch: int, plan: EpochPlan) -> None:
        """Find the rows of all views of the epoch at once, since the plan is on the device."""
        self.others.begin(epoch, plan)
        self.rows = store_rows(plan.order, plan.shift, plan.flip, self.base_view).cpu().numpy()

    def __call__(self, plan: StepPlan, views: ViewImages) -> dict[str, Outputs]:
        """Read x; the other source gives the other views."""
        stored = BASE_VIEW in views and self.is_cacheable(BASE_VIEW)
        outputs = self.others(plan, {view: x for view, x in views.items() if view != BASE_VIEW or not stored})
        if stored:
            rows = self.rows[plan.offset : plan.offset + len(views[BASE_VIEW])]
            outputs[BASE_VIEW] = self.from_store(self.logits[rows], views[BASE_VIEW].device)
        return outputs

    def end(self) -> None:
        """Finish the epoch of the other source."""
        self.others.end()
