"""What the teacher says of the views, asked in the step or read from where it was kept.

A step asks about some views of its batch by name: `x`, and `<view>/<k>` for each draw of the strong view's pool.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from kdflow.config import RunSettings
from kdflow.models.features import FeatureExtractor, Outputs
from kdflow.training import record
from kdflow.training.distributed import all_gather_rows, shard
from kdflow.training.epoch_plan import EpochPlan, StepPlan

BASE_VIEW = "x"
ViewImages = Mapping[str, Float[Tensor, "_b 3 _h _w"]]


@dataclass
class Counts:
    """About how many views the teacher was asked, and about how many it was read what it said."""

    teacher_views_computed: int = 0
    teacher_views_read: int = 0


class TeacherSource(ABC):
    """Where a run takes the teacher's outputs from."""

    def __init__(self, ask: FeatureExtractor) -> None:
        self.ask, self.counts = ask, Counts()

    def begin(self, epoch: int, plan: EpochPlan) -> None:  # noqa: B027 (not every source has something to do)
        """Make ready for a 0-based epoch."""

    @abstractmethod
    def __call__(self, row: StepPlan, views: ViewImages) -> dict[str, Outputs]:
        """What the teacher says of the views of a batch, without gradients."""

    def end(self) -> None:  # noqa: B027
        """Every row of the epoch was asked for."""

    def is_stored(self, name: str) -> bool:
        """Whether a store can serve what is asked about this view: it has logits and no features."""
        return name != BASE_VIEW or not self.ask.gives_features

    def online(self, views: ViewImages) -> dict[str, Outputs]:
        """Ask the teacher, in one pass over all of the views; several processes share it, and each has all logits."""
        if not views:
            return {}
        images = torch.cat(list(views.values()))
        with torch.no_grad():
            said = self.ask(images[shard(len(images))])
        said = replace(said, logits=all_gather_rows(said.logits, len(images)))
        self.counts.teacher_views_computed += len(said.logits)
        found, start = {}, 0
        for name, images in views.items():
            found[name] = said.rows(start, start + len(images))
            start += len(images)
        return found

    def stored(self, logits: npt.NDArray[Any], device: torch.device) -> Outputs:
        """Logits as they were read, as if asked just now."""
        self.counts.teacher_views_read += len(logits)
        read = torch.from_numpy(logits.copy())  # torch wants memory that may be written to
        if device.type == "cuda":
            read = read.pin_memory()  # so that the host need not wait for the copy
        return Outputs(read.to(device, torch.float32, non_blocking=True), (), None)


class Online(TeacherSource):
    """Asks the teacher in every step."""

    def __call__(self, row: StepPlan, views: ViewImages) -> dict[str, Outputs]:  # noqa: ARG002
        """One forward pass."""
        return self.online(views)


def cache_key(run: RunSettings, teacher_sha256: str, dataset_sha256: str) -> dict[str, str]:
    """What decides what a teacher says of a view of a training image."""
    assert run.teacher is not None
    return {
        "teacher": run.teacher.model_dump_json(),
        "teacher_sha256": teacher_sha256,
        "dataset_sha256": dataset_sha256,
        "train_images": str(run.train_images),
        "base_view": run.base_view.model_dump_json(),
        "precision": run.precision.model_dump_json(exclude={"student"}),
    }


def plan_cache_key(run: RunSettings, device: str) -> dict[str, str]:
    """What else decides what is in a plan, and every digit of what the teacher says of it."""
    return {
        "seed": str(run.seed),
        "batch_size": str(run.training.batch_size),
        "code_sha256": record.code_sha256("models", "models/families", "methods/views"),
        "device": device,
        "torch": str(torch.__version__),  # of a type of its own
    }
