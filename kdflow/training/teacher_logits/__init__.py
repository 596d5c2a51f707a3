"""Teacher outputs for the views of a batch, computed in the step or read from a store.

A step names the views that it needs: `x`, and `<view>/<k>` for each draw of the strong view's pool.
"""

from __future__ import annotations

import importlib.metadata
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
class ViewCounts:
    """Number of views whose teacher outputs were computed, and of those that were read from a store."""

    computed: int = 0
    read: int = 0


class TeacherSource(ABC):
    """Source of the teacher's outputs for a run."""

    def __init__(self, teacher: FeatureExtractor) -> None:
        self.teacher, self.counts = teacher, ViewCounts()

    def begin(self, epoch: int, plan: EpochPlan) -> None:  # noqa: B027 (not every source has something to do)
        """Prepare for a 0-based epoch."""

    @abstractmethod
    def __call__(self, plan: StepPlan, views: ViewImages) -> dict[str, Outputs]:
        """Return the teacher's outputs for the views of a batch, without gradients."""

    def end(self) -> None:  # noqa: B027
        """Finish the epoch, after its last step."""

    def take_counts(self) -> ViewCounts:
        """Return the counts since the last call."""
        counts = replace(self.counts)
        self.counts.computed = self.counts.read = 0
        return counts

    def is_cacheable(self, view: str) -> bool:
        """Return whether a store can serve this view: it holds logits and no features, which only x needs."""
        return view != BASE_VIEW or not self.teacher.gives_features

    def compute(self, views: ViewImages) -> dict[str, Outputs]:
        """Run the teacher once for all views.

        Several processes share the images of each view. Each gets all logits, and the features of its share.
        """
        if not views:
            return {}
        shares = [images[shard(len(images))] for images in views.values()]
        with torch.no_grad():
            outputs = self.teacher(torch.cat(shares))
        by_view, start = {}, 0
        for (view, images), share in zip(views.items(), shares, strict=True):
            rows = outputs.rows(start, start + len(share))
            by_view[view] = replace(rows, logits=all_gather_rows(rows.logits, len(images)))
            if not torch.compiler.is_compiling():  # a counter in a graph would be a constant
                self.counts.computed += len(images)
            start += len(share)
        return by_view

    def from_store(self, logits: npt.NDArray[Any], device: torch.device) -> Outputs:
        """Convert logits of a store to outputs on the device."""
        self.counts.read += len(logits)
        tensor = torch.from_numpy(logits.copy())  # torch requires writable memory
        if device.type == "cuda":
            tensor = tensor.pin_memory()  # so that the host does not wait for the copy
        return Outputs(tensor.to(device, torch.float32, non_blocking=True), (), None)


class Online(TeacherSource):
    """Teacher outputs that are computed in every step."""

    def __call__(self, plan: StepPlan, views: ViewImages) -> dict[str, Outputs]:  # noqa: ARG002
        """Run one forward pass."""
        return self.compute(views)


def cache_key(run: RunSettings, teacher_sha256: str, dataset_sha256: str) -> dict[str, str]:
    """Return all that a teacher's logits for a view of a training image depend on."""
    assert run.teacher is not None
    code = run.user_code.get(run.teacher.model.family)
    # The usual runtime is not part of the key: stores of versions without this setting stay valid.
    usual = {"teacher_runtime"} if run.precision.teacher_runtime == "torch" else set()
    return {
        **({} if code is None else {"teacher_code": code}),
        "teacher": run.teacher.model_dump_json(),
        "teacher_sha256": teacher_sha256,
        "dataset_sha256": dataset_sha256,
        "train_images": str(run.train_images),
        "base_view": run.base_view.model_dump_json(),
        "precision": run.precision.model_dump_json(exclude={"student", "step"} | usual),
    }


def digits_key(run: RunSettings, device: str) -> dict[str, str]:
    """Return all that the last digits of a teacher's logits depend on besides `cache_key`."""
    runtime = run.precision.teacher_runtime
    return {
        "code_sha256": record.code_sha256("models", "models/families", "methods/views"),
        "device": device,
        "torch": str(torch.__version__),  # a subclass of str, which h5py does not store
    } | ({} if runtime == "torch" else {runtime: importlib.metadata.version(runtime)})


def plan_cache_key(run: RunSettings, device: str) -> dict[str, str]:
    """Return all that the plans of a run, and each digit of the teacher's logits for them, depend on besides that."""
    strong = run.method.strong
    code = None if strong is None else run.user_code.get(strong.view)
    return {
        **({} if code is None else {"view_code": code}),
        "seed": str(run.seed),
        "batch_size": str(run.training.batch_size),
        **digits_key(run, device),
    }
