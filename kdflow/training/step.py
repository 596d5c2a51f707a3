"""One update of the student: views -> teacher -> pick -> student -> loss -> update (the paper's Section 3.2)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.config import Architecture, Method, RunSettings, StrongView
from kdflow.core.errors import UserError, one_line
from kdflow.methods.labels import mixed
from kdflow.methods.losses import distillation_loss
from kdflow.methods.picks import Pool, pick_ratio, top_fraction
from kdflow.methods.views import StrongBatch, concat_draws
from kdflow.models import create_model
from kdflow.models.features import FeatureExtractor, Outputs, output_shapes, without_features
from kdflow.models.precision import Forward, make_forward
from kdflow.training.batches import Batch
from kdflow.training.distributed import all_gather_rows, all_reduce_mean, scale_to_global_mean, shard, wrap_ddp
from kdflow.training.teacher_logits import BASE_VIEW, TeacherSource


class StudentWithLoss(nn.Module):
    """All that is trained and kept in a checkpoint: the student, and what its loss has of its own."""

    def __init__(self, student: nn.Module, loss: nn.Module | None) -> None:
        super().__init__()
        self.student, self.loss = student, loss


def new_student(run: RunSettings, labels: Int64[Tensor, " n"]) -> StudentWithLoss:
    """Fresh weights from the seed, drawn on the CPU: the student's are the same for every method and device.

    Args:
        labels: those of the training set.

    Raises:
        UserError: the images do not suit the model, or the pair of models the method.
    """
    own = Architecture(name=run.architecture, model=run.model)
    shapes = output_shapes(own, run.classes, run.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        student = create_model(run.architecture, run.model, run.classes, run.image_size)
        loss = _new_loss(run, shapes, labels)
    learner = StudentWithLoss(student, loss).to(labels.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return learner.train()  # type: ignore[no-any-return]


def _new_loss(run: RunSettings, student: Outputs, labels: Int64[Tensor, " n"]) -> nn.Module | None:
    asked = run.method.loss
    if asked is None:
        return None
    assert run.teacher is not None
    module: Any = importlib.import_module(f"kdflow.methods.losses.{asked.name}")
    try:
        loss: nn.Module = module.build(
            student, output_shapes(run.teacher, run.classes, run.image_size), labels, **asked.options
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"recipes/methods.yaml: loss: {asked.name}: {one_line(error)}") from None
    return loss


def check_last_batch_norm(run: RunSettings) -> None:
    """Refuse a model whose batch norm would have one value per channel, where the last batch is one image.

    Raises:
        UserError: it has.
    """
    strong = run.method.strong
    pick = strong.pick if strong is not None and strong.replaces_x else None  # else x, one view, is passed as well
    views = 1 if pick is None else len(top_fraction(torch.zeros(pick.pool), pick.keep))
    with torch.device("meta"):
        model = create_model(run.architecture, run.model, run.classes, run.image_size).train()
    try:
        model(torch.zeros(views, 3, run.image_size, run.image_size, device="meta"))
    except Exception as error:  # anything else is told when it is trained
        if "more than 1 value per channel" in str(error):
            raise UserError(
                f"{run.role} {run.architecture}: {run.train_images:,} training images in batches of "
                f"{run.training.batch_size} leave a last one of 1, too few for its batch norm at {run.image_size} px; "
                "change train_images or batch_size"
            ) from None


def teacher_views(method: Method) -> tuple[str, ...]:
    """About which views of a batch the method's step asks the teacher."""
    strong = method.strong
    x = method.loss is not None or (method.kl > 0 and not (strong and strong.replaces_x))
    if strong is None:
        return (BASE_VIEW,) if x else ()
    label: Any = importlib.import_module(f"kdflow.methods.labels.{strong.label}")
    weight = method.kl if strong.weight is None else strong.weight
    pool = 1 if strong.pick is None else strong.pick.pool
    needed = strong.pick is not None or (label.NEEDS_STRONG and weight > 0)
    draws = [view_key(strong, k) for k in range(pool)] if needed else []
    return ((BASE_VIEW,) if x or label.NEEDS_X else ()) + tuple(draws)


def view_key(strong: StrongView, k: int) -> str:
    """The name of draw k of a strong view's pool."""
    return f"{strong.view}/{k}"


@dataclass(frozen=True)
class StepResult:
    """What a step reports, still on the device: its loss, and r of the paper's Eq. 4 where it picked."""

    loss: Float[Tensor, ""]
    pick_ratio: Float[Tensor, ""] | None


class StrongViewTerm:
    """What a method does with strong views x'.

    Raises:
        UserError: a batch is too small for the view.
    """

    def __init__(self, run: RunSettings, settings: StrongView, student: nn.Module, forward: Forward) -> None:
        self.method, self.settings, self.student, self.forward = run.method, settings, student, forward
        self.view: Any = importlib.import_module(f"kdflow.methods.views.{settings.view}")
        self.label: Any = importlib.import_module(f"kdflow.methods.labels.{settings.label}")
        self.criterion: Any = settings.pick and importlib.import_module(
            f"kdflow.methods.picks.{settings.pick.criterion}"
        )
        self.weight = run.method.kl if settings.weight is None else settings.weight
        if self.view.MIXES_IMAGES and run.training.batch_size == 1:
            raise UserError(
                f"batch_size: {settings.view} mixes the images of a batch, which has only 1; take 2 or more"
            )

    def views(self, batch: Batch) -> dict[str, StrongBatch]:
        """x' of every draw of the pool, by name."""
        return {view_key(self.settings, k): self.view.apply(batch.x, draw) for k, draw in enumerate(batch.row.strong)}

    def pick(self, pool: StrongBatch, noise: Float[Tensor, " n"]) -> tuple[StrongBatch, Float[Tensor, ""] | None]:
        """The share of the pool that is hardest, with what the teacher said of it, and r.

        The student scores in train mode by default, as published: it moves the running statistics of batch norm.
        """
        pick, taught = self.settings.pick, pool.teacher_logits
        if pick is None:
            return pool, None
        assert taught is not None

        def student_outputs() -> Tensor:
            self.student.train(pick.student_mode == "train")
            logits = self.forward(pool.images[shard(len(pool.images))])
            self.student.train()
            return all_gather_rows(logits, len(pool.images))

        with torch.no_grad():
            scores = self.criterion.score(Pool(taught, student_outputs, self.method.tau, noise))
            kept = top_fraction(scores, pick.keep)
            return pool.take(kept), pick_ratio(scores, kept)

    def loss(self, kept: StrongBatch, labels: Int64[Tensor, " b"], taught: Outputs | None) -> Float[Tensor, ""]:
        """What x' adds: its label's loss; in x's place, cross-entropy with the mixed label as well."""
        views = len(kept.images)
        kept = kept.take(shard(views))
        logits = self.forward(kept.images)
        loss: Tensor = logits.new_zeros(())
        if self.weight > 0:
            teacher_logits_x = None if taught is None else taught.logits
            loss = loss + self.weight * self.label.loss(logits, kept, labels, teacher_logits_x, self.method.tau)
        if self.settings.replaces_x:
            loss = loss + self.method.ce * mixed.loss(logits, kept, labels)
        return scale_to_global_mean(loss, views)


class Step:
    """The step of one run. Its randomness is the row's, so that it is a function of the weights and the row alone.

    Raises:
        UserError: a batch is too small for the strong view.
    """

    def __init__(
        self,
        run: RunSettings,
        learner: StudentWithLoss,
        teacher: TeacherSource | None,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        method = run.method
        self.method, self.teacher, self.optimizer = method, teacher, optimizer
        self.student, self.loss = wrap_ddp(learner.student), learner.loss
        forward = make_forward(self.student, run.precision.student, run.precision.compile)
        recipe = run.model if self.loss is not None else without_features(run.model)
        self.student_outputs = FeatureExtractor(run.architecture, self.student, recipe, forward)
        self.strong = StrongViewTerm(run, method.strong, self.student, forward) if method.strong else None
        self.sees_x = method.strong is None or not method.strong.replaces_x
        self.asks = teacher_views(method)

    def __call__(self, batch: Batch, lr: float) -> StepResult:
        """Update the student at learning rate `lr`."""
        draws = self.strong.views(batch) if self.strong else {}
        taught, draws = self.query_teacher(batch, draws)
        loss, pick_ratio = batch.x.new_zeros(()), None
        if self.sees_x:
            loss = loss + self.base_loss(batch, taught)
        if self.strong is not None:
            kept, pick_ratio = self.strong.pick(concat_draws(list(draws.values())), batch.row.noise)
            loss = loss + self.strong.loss(kept, batch.labels, taught)
        self.update(loss, lr)
        return StepResult(all_reduce_mean(loss.detach()), pick_ratio)

    def query_teacher(
        self, batch: Batch, draws: dict[str, StrongBatch]
    ) -> tuple[Outputs | None, dict[str, StrongBatch]]:
        """What the teacher says of x, and every draw with what it says of that, where they are needed."""
        if not self.asks:
            return None, draws
        assert self.teacher is not None
        images = {BASE_VIEW: batch.x} | {name: draw.images for name, draw in draws.items()}
        said = self.teacher(batch.row, {name: images[name] for name in self.asks})
        taught = {name: replace(draw, teacher_logits=said[name].logits) for name, draw in draws.items() if name in said}
        return said.get(BASE_VIEW), draws | taught

    def base_loss(self, batch: Batch, taught: Outputs | None) -> Float[Tensor, ""]:
        """ce CE(x, y) + kl KL(x) + weight L(x)."""
        method, row, mine = self.method, batch.row, shard(len(batch.x))
        said = self.student_outputs(batch.x[mine])
        loss = method.ce * F.cross_entropy(said.logits, batch.labels[mine])
        if taught is not None and method.kl > 0:
            loss = loss + method.kl * distillation_loss(taught.logits[mine], said.logits, method.tau)
        if self.loss is not None and method.loss is not None:
            generator = torch.Generator().manual_seed(row.seed)
            loss = loss + method.loss.weight * self.loss(said, taught, row.index, generator)
        return scale_to_global_mean(loss, len(batch.x))

    def update(self, loss: Float[Tensor, ""], lr: float) -> None:
        """One step of the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
