"""Replay of teacher logits: the first run of a teacher and seed writes them, all others read them.

The logits of an epoch's views depend on teacher, dataset, seed and epoch alone, never on the student. So there is one
file for each epoch and view, in the order of the epoch plan, which every method and student of that teacher and seed
can read. The digits of a run do not depend on which files exist: computed logits are rounded to the dtype of the files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from kdflow.core.errors import user_message
from kdflow.models.features import FeatureExtractor, Outputs
from kdflow.training.epoch_plan import EpochPlan, StepPlan
from kdflow.training.teacher_logits import BASE_VIEW, TeacherSource, ViewImages, store
from kdflow.training.teacher_logits.store import CacheKey, StoreError


class ReplayCache:
    """Folder of the files of one cache key, below a root folder of limited size.

    While a process has the cache open, its folder is not removed to make room for others.
    """

    def __init__(self, root: Path, key: CacheKey, limit: int) -> None:
        digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
        self.root, self.folder, self.limit = root, root / digest[:16], limit
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder / "lock").open("a")
        fcntl.flock(self.lock, fcntl.LOCK_SH)
        (self.folder / "lock").touch()  # its modification time is that of the last use

    def file(self, epoch: int, name: str) -> Path:
        """Return the path of the logits of an epoch; `name` has the view and the dtype."""
        return self.folder / f"epoch{epoch:04}-{name.replace('/', '-')}.h5"

    def has_room(self, size: int) -> bool:
        """Return whether `size` more bytes are within the limit, after removing unused folders, the oldest first."""
        others = sorted(set(self.root.glob("*/lock")) - {self.folder / "lock"}, key=_modified)
        while (over := _size(self.root) + size > self.limit) and others:
            with others.pop(0).open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # another run uses it
                shutil.rmtree(Path(lock.name).parent, ignore_errors=True)
        return not over


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*/*.h5") if file.exists())


class Replay(TeacherSource):
    """Teacher logits from the cache; missing ones are computed view by view, and written at the end of the epoch."""

    def __init__(
        self,
        teacher: FeatureExtractor,
        cache: ReplayCache,
        key: CacheKey,
        classes: int,
        dtype: str,
        note: Callable[[str], None],
    ) -> None:
        super().__init__(teacher)
        self.cache, self.key, self.classes, self.note = cache, key, classes, note
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.dtype_name = dtype
        self.epoch = 0
        self.plan: EpochPlan | None = None
        self.stored: dict[str, npt.NDArray[Any] | None] = {}  # None: there is no usable file
        self.to_write: dict[str, Tensor] = {}

    def begin(self, epoch: int, plan: EpochPlan) -> None:
        """Drop the logits of the previous epoch."""
        self.epoch, self.plan = epoch, plan
        self.stored, self.to_write = {}, {}

    def __call__(self, plan: StepPlan, views: ViewImages) -> dict[str, Outputs]:
        """Query each view by itself: a pass has the same size, and so the same digits, whichever files exist."""
        return {view: self.query(view, plan, images) for view, images in views.items()}

    def query(self, view: str, plan: StepPlan, images: Float[Tensor, "b 3 _h _w"]) -> Outputs:
        """Return the teacher's outputs for one of the views of a batch."""
        if not self.is_cacheable(view):
            return self.compute({view: images})[view]
        end = plan.offset + len(images)
        if view not in self.stored:
            self.stored[view] = self._open(view, images.device)
        stored = self.stored[view]
        if stored is not None:
            return self.from_store(stored[plan.offset : end], images.device)
        rounded = self.compute({view: images})[view].logits.to(self.dtype)
        if view in self.to_write:
            self.to_write[view][plan.offset : end].copy_(rounded, non_blocking=True)
        return Outputs(rounded.to(torch.float32), (), None)

    def end(self) -> None:
        """Write the logits that were computed in the epoch."""
        for view, logits in self.to_write.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # the copies to the host may not be complete
            try:
                store.write_store(self._file(view), logits.numpy(), self._file_key(view))
            except OSError as error:
                self.note(f"replay: {user_message(error)}; the run continues without this file")

    def _file(self, view: str) -> Path:
        # The dtype is in the name: otherwise runs of two dtypes would each refuse the other's file.
        return self.cache.file(self.epoch, f"{view}-{self.dtype_name}")

    def _open(self, view: str, device: torch.device) -> npt.NDArray[Any] | None:
        assert self.plan is not None
        shape = (len(self.plan.order), self.classes)
        try:
            return store.read_store(self._file(view), shape, self.dtype_name, self._file_key(view))
        except FileNotFoundError:
            if self.cache.has_room(math.prod(shape) * self.dtype.itemsize + store.HEADER):
                self.to_write[view] = torch.empty(shape, dtype=self.dtype, pin_memory=device.type == "cuda")
            else:
                self.note(f"replay: epoch {self.epoch + 1} is not kept: {self.cache.root} is full")
        except StoreError as error:
            self.note(f"replay: {error}; the teacher's logits are computed, the file is left as it is")
        return None

    def _file_key(self, view: str) -> CacheKey:
        """Return the key of the epoch's file, with a hash of all draws of the plan for this view."""
        assert self.plan is not None
        plan = self.plan
        draws = [plan.order, plan.shift, plan.flip, plan.image_seeds]
        if view != BASE_VIEW:
            draws += [value for _, value in sorted(plan.strong[int(view.split("/")[1])].items())]
        digest = hashlib.sha256()
        for value in draws:
            digest.update(value.cpu().numpy().tobytes())
        return {**self.key, "epoch": str(self.epoch), "view": view, "plan": digest.hexdigest()}
