"""The part of a step that is about strong views x'."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kdflow.config import RunSettings, StrongView
from kdflow.core.errors import UserError
from kdflow.methods.labels import mixed
from kdflow.methods.picks import Pool, pick_ratio, top_fraction
from kdflow.methods.views import StrongBatch, load_view
from kdflow.models.precision import Forward
from kdflow.training.batches import Batch
from kdflow.training.distributed import all_gather_rows, scale_to_global_mean, shard


def view_key(strong: StrongView, k: int) -> str:
    """Return the name of draw k of a strong view's pool."""
    return f"{strong.view}/{k}"


class StrongViewTerm:
    """Term of the loss for strong views x'.

    Raises:
        UserError: a batch is too small for the view.
    """

    def __init__(self, run: RunSettings, settings: StrongView, student: nn.Module, forward: Forward) -> None:
        self.method, self.settings, self.student, self.forward = run.method, settings, student, forward
        self.view = load_view(settings.view)
        self.label: Any = importlib.import_module(f"kdflow.methods.labels.{settings.label}")
        self.criterion: Any = settings.pick and importlib.import_module(
            f"kdflow.methods.picks.{settings.pick.criterion}"
        )
        self.weight = run.method.kl if settings.weight is None else settings.weight
        if self.view.MIXES_IMAGES and run.training.batch_size == 1:
            raise UserError(
                f"batch_size: {settings.view} mixes the images of a batch, which has only 1; take 2 or more"
            )

    def apply_view(self, batch: Batch) -> dict[str, StrongBatch]:
        """Return x' of each draw of the pool, by its view key."""
        return {view_key(self.settings, k): self.view.apply(batch.x, draw) for k, draw in enumerate(batch.plan.strong)}

    def pick(self, pool: StrongBatch, noise: Float[Tensor, " n"]) -> tuple[StrongBatch, Float[Tensor, ""] | None]:
        """Return the views of the pool with the largest scores, and r of Eq. 4; all of it if the method does not pick.

        By default the student scores in train mode, as published: that updates the running statistics of batch norm.
        """
        pick, teacher_logits = self.settings.pick, pool.teacher_logits
        if pick is None:
            return pool, None
        assert teacher_logits is not None

        def student_outputs() -> Tensor:
            self.student.train(pick.student_mode == "train")
            logits = self.forward(pool.images[shard(len(pool.images))])
            self.student.train()
            return all_gather_rows(logits, len(pool.images))

        with torch.no_grad():
            scores = self.criterion.score(Pool(teacher_logits, student_outputs, self.method.tau, noise))
            picked = top_fraction(scores, pick.keep)
            return pool.take(picked), pick_ratio(scores, picked)

    def loss(
        self, picked: StrongBatch, labels: Int64[Tensor, " b"], teacher_logits_x: Float[Tensor, "b classes"] | None
    ) -> Float[Tensor, ""]:
        """Return the weighted loss of x'; if x' replaces x, cross-entropy with the mixed label is added."""
        views = len(picked.images)
        picked = picked.take(shard(views))
        logits = self.forward(picked.images)
        loss: Tensor = logits.new_zeros(())
        if self.weight > 0:
            loss = loss + self.weight * self.label.loss(logits, picked, labels, teacher_logits_x, self.method.tau)
        if self.settings.replaces_x:
            loss = loss + self.method.ce * mixed.loss(logits, picked, labels)
        return scale_to_global_mean(loss, views)
