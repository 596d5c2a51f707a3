"""The teacher is asked once: what it said of an epoch's views, in the order of the plan, for all other runs.

That depends on teacher, dataset, seed and epoch alone, never on the student. So whichever run comes first writes it
down, one file for each epoch and view, and every other method and student of that teacher and seed reads it.
A run's digits never depend on what it finds: what it asks itself is rounded as what it would have read.
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
    """The folder of one (teacher, dataset, seed) below a scratch folder of limited size.

    While it is held it is not removed to make room for others.
    """

    def __init__(self, scratch: Path, about: CacheKey, limit: int) -> None:
        key = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()
        self.scratch, self.folder, self.limit = scratch, scratch / key[:16], limit
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder / "lock").open("a")
        fcntl.flock(self.lock, fcntl.LOCK_SH)
        (self.folder / "lock").touch()  # when it was last used

    def file(self, epoch: int, name: str) -> Path:
        """Where what was said of an epoch's view lies, by the name of both view and dtype."""
        return self.folder / f"epoch{epoch:04}-{name.replace('/', '-')}.h5"

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes more are within the limit, after removing what nobody uses, the oldest first."""
        others = sorted(set(self.scratch.glob("*/lock")) - {self.folder / "lock"}, key=_modified)
        while (over := _size(self.scratch) + size > self.limit) and others:
            with others.pop(0).open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # another run holds it
                shutil.rmtree(Path(lock.name).parent, ignore_errors=True)
        return not over


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*/*.h5") if file.exists())


class Replay(TeacherSource):
    """Reads what an earlier run was told, and else asks, view by view, and writes it down."""

    def __init__(
        self,
        ask: FeatureExtractor,
        shelf: ReplayCache,
        about: CacheKey,
        classes: int,
        dtype: str,
        note: Callable[[str], None],
    ) -> None:
        super().__init__(ask)
        self.shelf, self.about, self.classes, self.note = shelf, about, classes, note
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.dtype_name = dtype
        self.epoch = 0
        self.plan: EpochPlan | None = None
        self.read: dict[str, npt.NDArray[Any] | None] = {}  # None: not there
        self.kept: dict[str, Tensor] = {}

    def begin(self, epoch: int, plan: EpochPlan) -> None:
        """Forget the epoch before."""
        self.epoch, self.plan = epoch, plan
        self.read, self.kept = {}, {}

    def __call__(self, row: StepPlan, views: ViewImages) -> dict[str, Outputs]:
        """A pass for each view that is not there: its size, and so its digits, are the same whatever is there."""
        return {name: self.of_view(name, row, images) for name, images in views.items()}

    def of_view(self, name: str, row: StepPlan, images: Float[Tensor, "b 3 _h _w"]) -> Outputs:
        """What the teacher says of one of the views of a batch."""
        if not self.is_stored(name):
            return self.online({name: images})[name]
        end = row.offset + len(images)
        if name not in self.read:
            self.read[name] = self._open(name, images.device)
        read = self.read[name]
        if read is not None:
            return self.stored(read[row.offset : end], images.device)
        rounded = self.online({name: images})[name].logits.to(self.dtype)
        if name in self.kept:
            self.kept[name][row.offset : end].copy_(rounded, non_blocking=True)
        return Outputs(rounded.to(torch.float32), (), None)

    def end(self) -> None:
        """Write down what was asked in the epoch."""
        for name, kept in self.kept.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # the copies to the host may still be under way
            try:
                store.write_store(self._file(name), kept.numpy(), self._about(name))
            except OSError as error:
                self.note(f"replay: {user_message(error)}; the run goes on without")

    def _file(self, name: str) -> Path:
        # Each dtype its own: else whoever came second with another one would ask the teacher again and again.
        return self.shelf.file(self.epoch, f"{name}-{self.dtype_name}")

    def _open(self, name: str, device: torch.device) -> npt.NDArray[Any] | None:
        assert self.plan is not None
        shape = (len(self.plan.order), self.classes)
        try:
            return store.read_store(self._file(name), shape, self.dtype_name, self._about(name))
        except FileNotFoundError:
            if self.shelf.has_room(math.prod(shape) * self.dtype.itemsize + store.HEADER):
                self.kept[name] = torch.empty(shape, dtype=self.dtype, pin_memory=device.type == "cuda")
            else:
                self.note(f"replay: epoch {self.epoch + 1} is not kept: {self.shelf.scratch} is full")
        except StoreError as error:
            self.note(f"replay: {error}; the teacher is asked instead, the file is left as it is")
        return None

    def _about(self, name: str) -> CacheKey:
        """What the epoch's file must say of itself, down to a hash of all that the plan drew for this view."""
        assert self.plan is not None
        plan = self.plan
        drawn = [plan.order, plan.shift, plan.flip, plan.image_seeds]
        if name != BASE_VIEW:
            drawn += [value for _, value in sorted(plan.strong[int(name.split("/")[1])].items())]
        digest = hashlib.sha256()
        for value in drawn:
            digest.update(value.cpu().numpy().tobytes())
        return {**self.about, "epoch": str(self.epoch), "view": name, "plan": digest.hexdigest()}
