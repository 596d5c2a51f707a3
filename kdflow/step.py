"""One update of the student: views -> teacher -> pick -> student -> loss -> update (the paper's Section 3.2)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.config import Architecture, Model, RunSettings, StrongView
from kdflow.data import ImageSet
from kdflow.epoch_plan import Row
from kdflow.errors import UserError, one_line
from kdflow.features import FeatureExtractor, Outputs, probe
from kdflow.labels import mixed
from kdflow.losses import distillation_loss
from kdflow.models import create_model
from kdflow.picks import Pool, hardest, ratio
from kdflow.views import BaseView, Strong, pool_of


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

    def __init__(self, run: RunSettings, settings: StrongView, student: nn.Module) -> None:
        self.method, self.settings, self.student = run.method, settings, student
        self.view: Any = importlib.import_module(f"kdflow.views.{settings.mix}")
        self.label: Any = importlib.import_module(f"kdflow.labels.{settings.label}")
        self.criterion: Any = settings.pick and importlib.import_module(f"kdflow.picks.{settings.pick.by}")
        self.weight = run.method.kl if settings.weight is None else settings.weight
        self.needs_taught = settings.pick is not None or (self.label.NEEDS_STRONG and self.weight > 0)
        if self.view.HAS_PARTNERS and run.training.batch_size == 1:
            raise UserError(f"batch_size: {settings.mix} mixes the images of a batch, which has only 1; take 2 or more")

    def views(self, x: Float[Tensor, "b 3 h w"], row: Row) -> Strong:
        """x' of every draw of the pool."""
        return pool_of([self.view.apply(x, draw) for draw in row.strong])

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
            logits: Tensor = self.student(pool.images)
            self.student.train()
            return logits

        with torch.no_grad():
            scores = self.criterion.score(Pool(taught, ask_student, self.method.tau, noise))
            kept = hardest(scores, pick.keep)
            return pool.take(kept), ratio(scores, kept)

    def loss(self, kept: Strong, labels: Int64[Tensor, " b"], taught: Outputs | None) -> Float[Tensor, ""]:
        """What x' adds: its label's loss; in x's place, cross-entropy with the mixed label as well."""
        logits = self.student(kept.images)
        loss: Tensor = logits.new_zeros(())
        if self.weight > 0:
            taught_x = None if taught is None else taught.logits
            loss = loss + self.weight * self.label.loss(logits, kept, labels, taught_x, self.method.tau)
        if self.settings.instead:
            loss = loss + self.method.ce * mixed.loss(logits, kept, labels)
        return loss


class Step:
    """The step of one run. Its randomness is the row's, so that it is a function of the weights and the row alone.

    Raises:
        UserError: a batch is too small for the strong view.
    """

    def __init__(
        self,
        run: RunSettings,
        images: ImageSet,
        learner: Learner,
        teacher: nn.Module | None,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        method = run.method
        self.run, self.method, self.images, self.optimizer = run, method, images, optimizer
        self.student, self.loss = learner.student, learner.loss
        self.ask_student = self._asking(run.architecture, self.student, run.model)
        self.ask_teacher: FeatureExtractor | None = None
        if run.teacher is not None:
            assert teacher is not None
            self.ask_teacher = self._asking(run.teacher.name, teacher, run.teacher.model)
        self.strong = StrongPart(run, method.strong, self.student) if method.strong else None
        self.sees_x = method.strong is None or not method.strong.instead
        self.needs_taught = (method.kl > 0 and self.sees_x) or self.loss is not None
        self.needs_taught |= self.strong is not None and self.strong.label.NEEDS_X
        self.device = images.images.device
        self.base_view = BaseView(run.views, self.device)

    def _asking(self, name: str, model: nn.Module, recipe: Model) -> FeatureExtractor:
        # Without a loss on features no layers are kept.
        layers = recipe if self.loss is not None else recipe.model_copy(update={"features": (), "head": None})
        return FeatureExtractor(name, model, layers)

    def __call__(self, row: Row, lr: float) -> Done:
        """Update the student at learning rate `lr`."""
        x = self.base_view(self.images.images[row.index], row.shift, row.flip)
        labels = self.images.labels[row.index]
        pool = self.strong.views(x, row) if self.strong else None
        taught, pool = self.teach(x, pool)
        loss, pick_ratio = x.new_zeros(()), None
        if self.sees_x:
            loss = loss + self.loss_of_x(x, labels, taught, row)
        if self.strong is not None and pool is not None:
            kept, pick_ratio = self.strong.pick(pool, row.noise)
            loss = loss + self.strong.loss(kept, labels, taught)
        self.update(loss, lr)
        return Done(loss.detach(), pick_ratio)

    def teach(self, x: Float[Tensor, "b 3 h w"], pool: Strong | None) -> tuple[Outputs | None, Strong | None]:
        """What the teacher says of x and of the whole pool, in one pass over what is needed of them."""
        batches = [x] if self.needs_taught else []
        if self.strong is not None and pool is not None and self.strong.needs_taught:
            batches.append(pool.images)
        if not batches:
            return None, pool
        assert self.ask_teacher is not None
        with torch.no_grad():
            said = self.ask_teacher(torch.cat(batches))
        if pool is not None and batches[-1] is pool.images:
            pool = replace(pool, taught=said.logits[-len(pool.images) :])
        return said.first(len(x)) if self.needs_taught else None, pool

    def loss_of_x(
        self, x: Float[Tensor, "b 3 h w"], labels: Int64[Tensor, " b"], taught: Outputs | None, row: Row
    ) -> Float[Tensor, ""]:
        """ce CE(x, y) + kl KL(x) + weight L(x)."""
        method = self.method
        said = self.ask_student(x)
        loss = method.ce * F.cross_entropy(said.logits, labels)
        if taught is not None and method.kl > 0:
            loss = loss + method.kl * distillation_loss(taught.logits, said.logits, method.tau)
        if self.loss is not None and method.loss is not None:
            generator = torch.Generator().manual_seed(row.seed)
            loss = loss + method.loss.weight * self.loss(said, taught, row.index, generator)
        return loss

    def update(self, loss: Float[Tensor, ""], lr: float) -> None:
        """One step of the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
