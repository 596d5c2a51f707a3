"""One update of the student: views -> teacher -> pick -> student -> loss -> update (the paper's Section 3.2)."""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdflow.config import Architecture, ExtraLoss, Method, RunSettings, Training
from kdflow.config.user_code import load_part
from kdflow.core.errors import UserError, one_line
from kdflow.methods.losses import LossInputs, distillation_loss, step_draws
from kdflow.methods.picks import top_fraction
from kdflow.methods.views import StrongBatch, concat_draws
from kdflow.models import create_model, create_model_on_meta, to_device
from kdflow.models.features import FeatureExtractor, Outputs, output_shapes, without_features
from kdflow.models.initial import load_initial
from kdflow.models.precision import make_forward
from kdflow.training.batches import Batch
from kdflow.training.device import seed_default_generators
from kdflow.training.distributed import (
    all_gather_rows,
    all_gather_rows_with_grad,
    all_reduce_mean,
    rank,
    scale_to_global_mean,
    shard,
    wrap_ddp,
)
from kdflow.training.graph import CudaGraph, StepResult, Update, compiled
from kdflow.training.strong_view import StrongViewTerm, view_key
from kdflow.training.teacher_logits import BASE_VIEW, TeacherSource, ViewCounts


class StudentWithLoss(nn.Module):
    """All that is saved in a checkpoint: the student, the modules of its extra loss, and copies of the student.

    `average` has the moving average of the student's weights, `best` the weights with the highest accuracy on held-out
    images; each is None if the settings do not need it. `head_note` states what became of the head of initial weights.
    """

    def __init__(self, student: nn.Module, loss: nn.Module | None, training: Training, head_note: str = "") -> None:
        super().__init__()
        self.student, self.loss, self.head_note = student, loss, head_note
        self.average: AveragedModel | None = None
        self.best: nn.Module | None = None
        if training.ema is not None:
            average = get_ema_multi_avg_fn(training.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(student, multi_avg_fn=average, use_buffers=True)
        if training.early_stop is not None:
            self.best = copy.deepcopy(student)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated after an epoch."""
        return self.student if self.average is None else self.average.module

    @property
    def exported(self) -> nn.Module:
        """The model whose weights are the result of the run."""
        return self.evaluated if self.best is None else self.best

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the student and of its extra loss."""
        return [*self.student.parameters(), *([] if self.loss is None else self.loss.parameters())]


def new_student(run: RunSettings, labels: Int64[Tensor, " n"], initial: Path | None = None) -> StudentWithLoss:
    """Create the student with weights from the seed, drawn on the CPU: the same for every method and device.

    Those of the file `initial` replace them, except for the head if its number of classes differs. `labels` are those
    of the training set.

    Raises:
        UserError: the model does not take images of this size, or the loss does not support the pair of models.
    """
    architecture = Architecture(name=run.architecture, model=run.model)
    shapes, teacher_shapes = output_shapes(architecture, run.classes, run.image_size), None
    if run.method.loss is not None and run.teacher is not None:
        teacher_shapes = output_shapes(run.teacher, run.classes, run.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        student = create_model(run.architecture, run.model, run.classes, run.image_size)
        loss = new_loss(run.method.loss, shapes, teacher_shapes, labels)
    note = ""
    if initial is not None:
        note = load_initial(student, run.architecture, run.model, initial, run.classes, run.image_size)
    return to_device(StudentWithLoss(student, loss, run.training, note), labels.device).train()


def new_loss(
    settings: ExtraLoss | None, student: Outputs, teacher: Outputs | None, labels: Int64[Tensor, " n"]
) -> nn.Module | None:
    """Create the module of an extra loss, with initial weights from torch's global generator; None without one.

    Args:
        settings: the loss, its options and its weight.
        student: outputs of the student for one batch, on the meta device.
        teacher: outputs of the teacher for the same batch.
        labels: labels of the training set.

    Raises:
        UserError: the loss does not have an option, or does not support the pair of models.
    """
    if settings is None:
        return None
    assert teacher is not None
    if not settings.needs_features:
        student, teacher = (replace(outputs, maps=(), pooled=None) for outputs in (student, teacher))
    module: Any = load_part("losses", settings.name, "recipes/methods.yaml: loss.name")
    module = module or importlib.import_module(f"kdflow.methods.losses.{settings.name}")
    try:
        loss: Any = module.build(student, teacher, labels, **settings.options)
    except Exception as error:  # Wrong options raise exceptions of many types.
        reason = one_line(error) or type(error).__name__
        raise UserError(f"recipes/methods.yaml: loss: {settings.name}: {reason}") from None
    if not isinstance(loss, nn.Module):
        found = type(loss).__name__
        raise UserError(f"recipes/methods.yaml: loss.name: {settings.name}: returns {found}, expected torch.nn.Module")
    return loss


def check_last_batch_norm(run: RunSettings) -> None:
    """Check that batch norm has more than one value per channel in the last batch of an epoch, if that is one image.

    Raises:
        UserError: a layer of the model or of its extra loss has one value only.
    """
    strong = run.method.strong
    pick = strong.pick if strong is not None and strong.replaces_x else None  # otherwise x, one image, is used as well
    views = 1 if pick is None else len(top_fraction(torch.zeros(pick.pool), pick.keep))
    model = create_model_on_meta(run.architecture, run.model, run.classes, run.image_size).train()
    try:
        model(torch.zeros(views, 3, run.image_size, run.image_size, device="meta"))
        _call_loss_on_meta(run)
    except Exception as error:  # training reports every other error
        if "more than 1 value per channel" in str(error):
            raise UserError(
                f"{run.role} {run.architecture}: {run.train_images:,} training images in batches of "
                f"{run.training.batch_size} leave a last one of 1, too few for its batch norm at {run.image_size} px; "
                "change train_images or batch_size"
            ) from None


def _call_loss_on_meta(run: RunSettings) -> None:
    """Call the extra loss, if there is one, with the shapes of one image."""
    architecture = Architecture(name=run.architecture, model=run.model)
    if run.method.loss is None or run.teacher is None:
        return
    student = output_shapes(architecture, run.classes, run.image_size)
    teacher = output_shapes(run.teacher, run.classes, run.image_size)
    loss = new_loss(run.method.loss, student, teacher, torch.arange(run.train_images) % run.classes)
    assert loss is not None
    teacher = teacher.rows(0, 1)
    label = torch.zeros(1, dtype=torch.int64, device="meta")
    inputs = LossInputs(
        student.rows(0, 1), teacher, label, label, 1.0, step_draws(loss, 1, 0, label.device), lambda _: teacher.logits
    )
    loss.to("meta").train()(inputs)


def teacher_views(method: Method) -> tuple[str, ...]:
    """Return the names of the views of a batch that a step of the method needs teacher outputs for."""
    strong = method.strong
    x = method.loss is not None or (method.kl > 0 and not (strong and strong.replaces_x))
    if strong is None:
        return (BASE_VIEW,) if x else ()
    label: Any = importlib.import_module(f"kdflow.methods.labels.{strong.label}")
    weight = method.kl if strong.weight is None else strong.weight
    pool = 1 if strong.pick is None else strong.pick.pool
    needs_draws = strong.pick is not None or (label.NEEDS_STRONG and weight > 0)
    draws = [view_key(strong, k) for k in range(pool)] if needs_draws else []
    return ((BASE_VIEW,) if x or label.NEEDS_X else ()) + tuple(draws)


class BatchLoss:
    """The loss of a batch: a function of the weights and the step plan, which has all its randomness but dropout's.

    Raises:
        UserError: a batch is too small for the strong view.
    """

    def __init__(
        self,
        run: RunSettings,
        learner: StudentWithLoss,
        teacher: TeacherSource | None,
        class_weights: Float[Tensor, " classes"] | None = None,
    ) -> None:
        method = run.method
        self.training, self.class_weights = run.training, class_weights
        self.method, self.teacher, self.epochs = method, teacher, run.training.epochs
        self.learner_loss, self.student = learner.loss, wrap_ddp(learner.student)
        self.loss = None if learner.loss is None else wrap_ddp(learner.loss)
        self.loss_needs_batch = method.loss is not None and method.loss.needs_batch
        forward = make_forward(self.student, run.precision.student, run.precision.compile)
        recipe = run.model if method.needs_features else without_features(run.model)
        self.student_outputs = FeatureExtractor(run.architecture, learner.student, recipe, forward)
        self.strong = StrongViewTerm(run, method.strong, self.student, forward) if method.strong else None
        self.uses_x = method.strong is None or not method.strong.replaces_x
        self.teacher_views = teacher_views(method)

    def draws(self, batch: Batch) -> Tensor | None:
        """Return the random numbers of the extra loss for this step; None if it draws none."""
        return step_draws(self.learner_loss, len(batch.x), batch.plan.seed, batch.x.device)

    def batch_loss(self, batch: Batch, draws: Tensor | None) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None]:
        """Return the loss, with gradients, and r of Eq. 4; None if the method does not pick."""
        pool = self.strong.apply_view(batch) if self.strong else {}
        teacher, pool = self.query_teacher(batch, pool)
        loss, pick_ratio = batch.x.new_zeros(()), None
        if self.uses_x:
            loss = loss + self.base_loss(batch, teacher, draws)
        if self.strong is not None:
            picked, pick_ratio = self.strong.pick(concat_draws(list(pool.values())), batch.plan.noise)
            loss = loss + self.strong.loss(picked, batch.labels, None if teacher is None else teacher.logits)
        return loss, pick_ratio

    def query_teacher(
        self, batch: Batch, draws: dict[str, StrongBatch]
    ) -> tuple[Outputs | None, dict[str, StrongBatch]]:
        """Return the teacher's outputs of x, and the draws with their teacher logits, where the method needs them."""
        if not self.teacher_views:
            return None, draws
        assert self.teacher is not None
        images = {BASE_VIEW: batch.x} | {key: draw.images for key, draw in draws.items()}
        outputs = self.teacher(batch.plan, {key: images[key] for key in self.teacher_views})
        labelled = {
            key: replace(draw, teacher_logits=outputs[key].logits) for key, draw in draws.items() if key in outputs
        }
        return outputs.get(BASE_VIEW), draws | labelled

    def base_loss(self, batch: Batch, teacher: Outputs | None, draws: Tensor | None) -> Float[Tensor, ""]:
        """Return ce CE(x, y) + kl KL(x) + weight L(x)."""
        method, n = self.method, len(batch.x)
        local = shard(n)
        student = self.student_outputs(batch.x[local])
        loss: Tensor = method.ce * self.cross_entropy(student.logits, batch.labels[local])
        if teacher is not None and method.kl > 0:
            loss = loss + method.kl * distillation_loss(teacher.logits[local], student.logits, method.tau)
        if self.loss is None or method.loss is None:
            return scale_to_global_mean(loss, n)
        assert teacher is not None
        extra: Tensor = method.loss.weight * self.loss(self._loss_inputs(batch, student, teacher, draws))
        if self.loss_needs_batch:  # each process has the loss of the whole batch
            return scale_to_global_mean(loss, n) + extra
        return scale_to_global_mean(loss + extra, n)

    def _loss_inputs(self, batch: Batch, student: Outputs, teacher: Outputs, draws: Tensor | None) -> LossInputs:
        """Return the inputs of the extra loss: of the whole batch, or of this process's share."""
        assert self.teacher is not None
        plan, n = batch.plan, len(batch.x)
        rows = slice(0, n) if self.loss_needs_batch else shard(n)
        if self.loss_needs_batch:
            logits = all_gather_rows_with_grad(student.logits, n)
            student = replace(student.map_features(lambda share: all_gather_rows_with_grad(share, n)), logits=logits)
            teacher = teacher.map_features(lambda share: all_gather_rows(share, n))  # its logits are of all rows
        return LossInputs(
            student=student,
            teacher=replace(teacher, logits=teacher.logits[rows]),
            labels=batch.labels[rows],
            index=plan.index[rows],
            run_fraction=(plan.epoch + 1) / self.epochs,
            draws=draws,
            teacher_head=self.teacher.teacher.head,
        )

    def cross_entropy(self, logits: Float[Tensor, "b classes"], labels: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return the cross-entropy with the labels, with label smoothing and class weights."""
        smoothing, weights = self.method.label_smoothing or self.training.label_smoothing, self.class_weights
        if weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        # torch's mean would divide by the weights of the batch, which would cancel them in a batch of one class.
        return F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing) / len(labels)


class Step(BatchLoss):
    """The training step of a run: a function of the weights and the step plan alone.

    Raises:
        UserError: a batch is too small for the strong view.
    """

    def __init__(
        self,
        run: RunSettings,
        learner: StudentWithLoss,
        teacher: TeacherSource | None,
        optimizer: torch.optim.Optimizer,
        class_weights: Float[Tensor, " classes"] | None = None,
    ) -> None:
        super().__init__(run, learner, teacher, class_weights)
        self.learner, self.parameters, self.optimizer = learner, learner.trained_parameters(), optimizer
        self.graph: Update | None = None
        self.lr: Tensor | None = None
        if run.precision.step == "compile":
            gradients = compiled(self.gradients)
            self.graph = lambda batch, draws: self._take_step(gradients(batch, draws))
        elif run.precision.step == "cuda_graph":
            self.graph = CudaGraph(self.update)
            self.lr = torch.zeros((), device=self.parameters[0].device)  # a number would be a constant of the graph
        if self.graph is not None:
            for extractor in [self.student_outputs, *([] if teacher is None else [teacher.teacher])]:
                extractor.keep_hooks()

    def __call__(self, batch: Batch, lr: float) -> StepResult:
        """Update the student at learning rate `lr`.

        It seeds torch's default generators, so that models with dropout give the same weights again, resumed or not.
        """
        # Processes have different images, and draw different masks.
        seed_default_generators(batch.plan.model_seed + rank(), batch.x.device)
        for group in self.optimizer.param_groups:
            group["lr"] = lr if self.lr is None else self.lr.fill_(lr)
        self.optimizer.zero_grad(set_to_none=True)
        draws = self.draws(batch)
        if self.graph is None or len(batch.x) < self.training.batch_size:
            result = self.update(batch, draws)
        else:
            counts = ViewCounts() if self.teacher is None else self.teacher.counts
            computed = counts.computed + len(self.teacher_views) * len(batch.x)
            result = self.graph(batch, draws)
            counts.computed = computed  # a graph runs no Python code that counts
        if self.learner.average is not None:
            self.learner.average.update_parameters(self.learner.student)
        return result

    def gradients(self, batch: Batch, draws: Tensor | None) -> StepResult:
        """Compute the gradients: a function of weights and of tensors of static shape, as a graph needs it."""
        loss, pick_ratio = self.batch_loss(batch, draws)
        loss.backward()  # type: ignore[no-untyped-call]
        return StepResult(all_reduce_mean(loss.detach()), pick_ratio)

    def update(self, batch: Batch, draws: Tensor | None) -> StepResult:
        """Compute the gradients and take one step of the optimiser."""
        return self._take_step(self.gradients(batch, draws))

    def _take_step(self, result: StepResult) -> StepResult:
        if self.training.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.training.clip_grad)
        self.optimizer.step()
        return result
