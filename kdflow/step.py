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
from kdflow.distributed import average, of_all, parallel, part_of_mean, share
from kdflow.errors import UserError, one_line
from kdflow.features import FeatureExtractor, Outputs, bare, probe
from kdflow.feed import Batch
from kdflow.labels import mixed
from kdflow.logits import Source, X
from kdflow.losses import distillation_loss
from kdflow.models import create_model
from kdflow.picks import Pool, hardest, ratio
from kdflow.precision import Forward, forward_of
from kdflow.views import Strong, pool_of


class Learner(nn.Module):
    """All that is trained and kept in a checkpoint: the student, and what its loss has of its own."""

    def __init__(self, student: nn.Module, loss: nn.Module | None) -> None:
        super().__init__()
        self.student, self.loss = student, loss


def new_learner(run: RunSettings, labels: Int64[Tensor, " n"]) -> Learner:
    """Fresh weights from the seed, drawn on the CPU: the student's are the same for every method and device.

    Args:
        labels: those of the training set.

    Raises:
        UserError: the images do not suit the model, or the pair of models the method.
    """
    own = Architecture(name=run.architecture, model=run.model)
    shapes = probe(own, run.classes, run.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        student = create_model(run.architecture, run.model, run.classes, run.image_size)
        loss = _new_loss(run, shapes, labels)
    learner = Learner(student, loss).to(labels.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return learner.train()  # type: ignore[no-any-return]


def _new_loss(run: RunSettings, student: Outputs, labels: Int64[Tensor, " n"]) -> nn.Module | None:
    asked = run.method.loss
    if asked is None:
        return None
    assert run.teacher is not None
    module: Any = importlib.import_module(f"kdflow.losses.{asked.name}")
    try:
        loss: nn.Module = module.build(
            student, probe(run.teacher, run.classes, run.image_size), labels, **asked.options
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"recipes/methods.yaml: loss: {asked.name}: {one_line(error)}") from None
    return loss


def check_batch_of_one(run: RunSettings) -> None:
    """Refuse a model whose batch norm would have one value per channel, where the last batch is one image.

    Raises:
        UserError: it has.
    """
    strong = run.method.strong
    pick = strong.pick if strong is not None and strong.instead else None  # else x, one view, is passed as well
    views = 1 if pick is None else len(hardest(torch.zeros(pick.pool), pick.keep))
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


def asks_about(method: Method) -> tuple[str, ...]:
    """About which views of a batch the method's step asks the teacher."""
    strong = method.strong
    x = method.loss is not None or (method.kl > 0 and not (strong and strong.instead))
    if strong is None:
        return (X,) if x else ()
    label: Any = importlib.import_module(f"kdflow.labels.{strong.label}")
    weight = method.kl if strong.weight is None else strong.weight
    pool = 1 if strong.pick is None else strong.pick.pool
    needed = strong.pick is not None or (label.NEEDS_STRONG and weight > 0)
    draws = [draw_name(strong, k) for k in range(pool)] if needed else []
    return ((X,) if x or label.NEEDS_X else ()) + tuple(draws)


def draw_name(strong: StrongView, k: int) -> str:
    """The name of draw k of a strong view's pool."""
    return f"{strong.mix}/{k}"


@dataclass(frozen=True)
class Done:
    """What a step reports, still on the device: its loss, and r of the paper's Eq. 4 where it picked."""

    loss: Float[Tensor, ""]
    pick_ratio: Float[Tensor, ""] | None


class StrongPart:
    """What a method does with strong views x'.

    Raises:
        UserError: a batch is too small for the view.
    """

    def __init__(self, run: RunSettings, settings: StrongView, student: nn.Module, forward: Forward) -> None:
        self.method, self.settings, self.student, self.forward = run.method, settings, student, forward
        self.view: Any = importlib.import_module(f"kdflow.views.{settings.mix}")
        self.label: Any = importlib.import_module(f"kdflow.labels.{settings.label}")
        self.criterion: Any = settings.pick and importlib.import_module(f"kdflow.picks.{settings.pick.by}")
        self.weight = run.method.kl if settings.weight is None else settings.weight
        if self.view.HAS_PARTNERS and run.training.batch_size == 1:
            raise UserError(f"batch_size: {settings.mix} mixes the images of a batch, which has only 1; take 2 or more")

    def views(self, batch: Batch) -> dict[str, Strong]:
        """x' of every draw of the pool, by name."""
        return {draw_name(self.settings, k): self.view.apply(batch.x, draw) for k, draw in enumerate(batch.row.strong)}

    def pick(self, pool: Strong, noise: Float[Tensor, " n"]) -> tuple[Strong, Float[Tensor, ""] | None]:
        """The share of the pool that is hardest, with what the teacher said of it, and r.

        The student scores in train mode by default, as published: it moves the running statistics of batch norm.
        """
        pick, taught = self.settings.pick, pool.taught
        if pick is None:
            return pool, None
        assert taught is not None

        def ask_student() -> Tensor:
            self.student.train(pick.scoring == "train")
            logits = self.forward(pool.images[share(len(pool.images))])
            self.student.train()
            return of_all(logits, len(pool.images))

        with torch.no_grad():
            scores = self.criterion.score(Pool(taught, ask_student, self.method.tau, noise))
            kept = hardest(scores, pick.keep)
            return pool.take(kept), ratio(scores, kept)

    def loss(self, kept: Strong, labels: Int64[Tensor, " b"], taught: Outputs | None) -> Float[Tensor, ""]:
        """What x' adds: its label's loss; in x's place, cross-entropy with the mixed label as well."""
        views = len(kept.images)
        kept = kept.take(share(views))
        logits = self.forward(kept.images)
        loss: Tensor = logits.new_zeros(())
        if self.weight > 0:
            taught_x = None if taught is None else taught.logits
            loss = loss + self.weight * self.label.loss(logits, kept, labels, taught_x, self.method.tau)
        if self.settings.instead:
            loss = loss + self.method.ce * mixed.loss(logits, kept, labels)
        return part_of_mean(loss, views)


class Step:
    """The step of one run. Its randomness is the row's, so that it is a function of the weights and the row alone.

    Raises:
        UserError: a batch is too small for the strong view.
    """

    def __init__(
        self, run: RunSettings, learner: Learner, teacher: Source | None, optimizer: torch.optim.Optimizer
    ) -> None:
        method = run.method
        self.method, self.teacher, self.optimizer = method, teacher, optimizer
        self.student, self.loss = parallel(learner.student), learner.loss
        forward = forward_of(self.student, run.precision.student, run.precision.compile)
        recipe = run.model if self.loss is not None else bare(run.model)
        self.ask_student = FeatureExtractor(run.architecture, self.student, recipe, forward)
        self.strong = StrongPart(run, method.strong, self.student, forward) if method.strong else None
        self.sees_x = method.strong is None or not method.strong.instead
        self.asks = asks_about(method)

    def __call__(self, batch: Batch, lr: float) -> Done:
        """Update the student at learning rate `lr`."""
        draws = self.strong.views(batch) if self.strong else {}
        taught, draws = self.teach(batch, draws)
        loss, pick_ratio = batch.x.new_zeros(()), None
        if self.sees_x:
            loss = loss + self.loss_of_x(batch, taught)
        if self.strong is not None:
            kept, pick_ratio = self.strong.pick(pool_of(list(draws.values())), batch.row.noise)
            loss = loss + self.strong.loss(kept, batch.labels, taught)
        self.update(loss, lr)
        return Done(average(loss.detach()), pick_ratio)

    def teach(self, batch: Batch, draws: dict[str, Strong]) -> tuple[Outputs | None, dict[str, Strong]]:
        """What the teacher says of x, and every draw with what it says of that, where they are needed."""
        if not self.asks:
            return None, draws
        assert self.teacher is not None
        images = {X: batch.x} | {name: draw.images for name, draw in draws.items()}
        said = self.teacher(batch.row, {name: images[name] for name in self.asks})
        taught = {name: replace(draw, taught=said[name].logits) for name, draw in draws.items() if name in said}
        return said.get(X), draws | taught

    def loss_of_x(self, batch: Batch, taught: Outputs | None) -> Float[Tensor, ""]:
        """ce CE(x, y) + kl KL(x) + weight L(x)."""
        method, row, mine = self.method, batch.row, share(len(batch.x))
        said = self.ask_student(batch.x[mine])
        loss = method.ce * F.cross_entropy(said.logits, batch.labels[mine])
        if taught is not None and method.kl > 0:
            loss = loss + method.kl * distillation_loss(taught.logits[mine], said.logits, method.tau)
        if self.loss is not None and method.loss is not None:
            generator = torch.Generator().manual_seed(row.seed)
            loss = loss + method.loss.weight * self.loss(said, taught, row.index, generator)
        return part_of_mean(loss, len(batch.x))

    def update(self, loss: Float[Tensor, ""], lr: float) -> None:
        """One step of the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
