"""The training loop over epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from kdflow.config import RunSettings, Training
from kdflow.core.errors import UserError
from kdflow.core.progress import Emit, Note, Pace, RunUpdate
from kdflow.data import Images, Loaded
from kdflow.training import checkpoint, distributed, record
from kdflow.training.batches import make_batches
from kdflow.training.checkpoint import RunProgress
from kdflow.training.epoch_plan import EpochPlan, draw_plan
from kdflow.training.evaluate import accuracy
from kdflow.training.freeze import Backbone
from kdflow.training.graph import StepResult
from kdflow.training.sampling import Sampling, class_weights, split
from kdflow.training.schedule import learning_rate
from kdflow.training.step import Step, StudentWithLoss
from kdflow.training.teacher_logits import TeacherSource, ViewCounts

EpochCallback = Callable[[record.Epoch], object]
REPORT_EVERY = 0.5  # seconds between two progress updates


def fit(
    name: str,
    run: RunSettings,
    data: Loaded,
    learner: StudentWithLoss,
    teacher: TeacherSource | None,
    checkpoint_file: Path | None,
    key: str,
    emit: Emit,
    on_epoch: EpochCallback | None = None,
) -> RunProgress:
    """Train for the epochs that are not in the run's checkpoint; return the progress of the finished run.

    Args:
        name: name of the run, for messages.
        run: settings of the run.
        data: training and test images.
        learner: the student and the modules of its extra loss; trained in place.
        teacher: source of the teacher's outputs, if the method needs them.
        checkpoint_file: the file that is replaced after each epoch; None keeps no checkpoint.
        key: identity of the run; a checkpoint with another key is ignored.
        emit: called with each event.
        on_epoch: called with the record of each epoch, first with those of the checkpoint.

    Raises:
        UserError: the loss is not finite.
    """
    training, (sampling, validation) = run.training, split(run, data.train)
    optimizer = _optimizer(run, learner)
    step = Step(run, learner, teacher, optimizer, class_weights(run, data.train.labels, sampling))
    batches = make_batches(data.train, run.base_view)
    backbone = Backbone(run, learner.student) if training.freeze_backbone else None
    progress = _resume(name, checkpoint_file, learner, optimizer, key, emit, on_epoch)
    steps_per_epoch = math.ceil(run.fitted_images / training.batch_size)
    report = _ProgressReport(name, training.epochs * steps_per_epoch, training.batch_size, emit)
    while not is_finished(training, progress.curve):
        epoch, started = len(progress.curve), time.perf_counter()
        first = epoch * steps_per_epoch
        plan = _plan(run, epoch, data.train, sampling)
        if backbone is not None:
            backbone.begin(epoch)
        if teacher is not None:
            teacher.begin(epoch, plan)
        steps, total = list[StepResult](), torch.zeros((), device=data.train.labels.device)
        for i, batch in enumerate(batches(plan)):
            steps.append(step(batch, learning_rate(training, first + i, steps_per_epoch)))
            total += steps[-1].loss * len(batch.labels)
            report.steps_done(first + i + 1, progress.curve)
        _check_finite(name, run, epoch, steps)
        if teacher is not None:
            teacher.end()
        point = _point(epoch, learning_rate(training, first, steps_per_epoch), steps, total.item() / run.fitted_images)
        point = _measure(run, point, progress.curve, learner, data.test, validation)
        progress = _add_epoch(progress, point, time.perf_counter() - started, teacher)
        if checkpoint_file is not None and distributed.rank() == 0:
            checkpoint.save(checkpoint_file, learner, optimizer, progress)
        report.epoch_done(first + steps_per_epoch, progress.curve)
        if on_epoch is not None:
            on_epoch(point)
    return progress


def _optimizer(run: RunSettings, learner: StudentWithLoss) -> torch.optim.Optimizer:
    training, parameters = run.training, learner.trained_parameters()
    lr, weight_decay, captured = training.lr, training.weight_decay, run.precision.step == "cuda_graph"
    fused = True if captured else None  # torch's default reads the learning rate on the host, which ends a capture
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=fused, capturable=captured)
    return torch.optim.SGD(parameters, lr=lr, momentum=training.momentum, weight_decay=weight_decay, fused=fused)


def is_finished(training: Training, curve: tuple[record.Epoch, ...]) -> bool:
    """Return whether training ends after these epochs: all are done, or early stopping ends it."""
    if len(curve) >= training.epochs:
        return True
    best = record.best_held_out(curve)
    return training.early_stop is not None and best is not None and len(curve) - best.epoch >= training.early_stop


def _plan(run: RunSettings, epoch: int, images: Images, sampling: Sampling | None) -> EpochPlan:
    n, size, strong = run.fitted_images, run.training.batch_size, run.method.strong
    return draw_plan(run.seed, epoch, n, size, run.image_size, run.base_view, strong, images.labels.device, sampling)


def _check_finite(name: str, run: RunSettings, epoch: int, steps: list[StepResult]) -> None:
    """Check all losses of an epoch at its end: a check at every step would make the host wait for the device.

    Raises:
        UserError: a loss is not finite.
    """
    failed = torch.stack([result.loss for result in steps]).isfinite().logical_not().nonzero().flatten().tolist()
    if failed:
        step = epoch * len(steps) + failed[0]
        last = f"of epoch {epoch}" if epoch else "none"
        raise UserError(
            f"{name}: the loss is {steps[failed[0]].loss.item()} at step {step + 1} (epoch {epoch + 1}), learning rate "
            f"{learning_rate(run.training, step, len(steps)):g}; last checkpoint: {last}"
        )


def _point(epoch: int, lr: float, steps: list[StepResult], loss: float) -> record.Epoch:
    """Return the record of a 0-based epoch, without accuracies."""
    first = steps[0].loss.item()
    return record.Epoch(
        epoch=epoch + 1, lr=lr, loss=loss, first_step_loss=first, top1=None, pick_ratio=_pick_ratio(steps)
    )


def _measure(
    run: RunSettings,
    point: record.Epoch,
    curve: tuple[record.Epoch, ...],
    learner: StudentWithLoss,
    test: Images,
    validation: Images | None,
) -> record.Epoch:
    """Return the epoch with the accuracies that are due, and keep the weights if they are the best of the run.

    Those on the test images never decide anything.
    """
    model, view = learner.evaluated, run.base_view
    if validation is not None:
        point = point.model_copy(update={"held_out_top1": accuracy(model, validation, view).top1})
        if learner.best is not None and record.best_held_out((*curve, point)) == point:
            learner.best.load_state_dict(model.state_dict())
    if point.epoch % run.training.eval_every and not is_finished(run.training, (*curve, point)):
        return point
    return point.model_copy(update={"top1": accuracy(model, test, view).top1})


def _pick_ratio(steps: list[StepResult]) -> float | None:
    ratios = [result.pick_ratio for result in steps if result.pick_ratio is not None]
    return torch.stack(ratios).mean().item() if ratios else None


def _add_epoch(
    progress: RunProgress, point: record.Epoch, seconds: float, teacher: TeacherSource | None
) -> RunProgress:
    counts = ViewCounts() if teacher is None else teacher.take_counts()
    return progress.model_copy(
        update={
            "curve": (*progress.curve, point),
            "seconds": progress.seconds + seconds,
            "teacher_views_computed": progress.teacher_views_computed + counts.computed,
            "teacher_views_read": progress.teacher_views_read + counts.read,
        }
    )


def _resume(
    name: str,
    file: Path | None,
    learner: StudentWithLoss,
    optimizer: torch.optim.Optimizer,
    key: str,
    emit: Emit,
    on_epoch: EpochCallback | None,
) -> RunProgress:
    """Load the checkpoint, or the previous one if that is damaged; without one the run starts at the first epoch."""
    for candidate in () if file is None else (file, checkpoint.previous_path(file)):
        try:
            progress = checkpoint.load(candidate, learner, optimizer, key)
        except ValueError as error:
            emit(Note(name, f"{error}; it is ignored"))
            continue
        if progress is not None:
            emit(Note(name, f"resumed after epoch {len(progress.curve)}"))
            if on_epoch is not None:
                for point in progress.curve:
                    on_epoch(point)
            return progress
    return RunProgress(run=key, started=datetime.now(UTC).isoformat(timespec="seconds"))


class _ProgressReport:
    """Emits the progress of a run. It never reads a value from the device, which would have to wait for it."""

    def __init__(self, name: str, steps: int, batch_size: int, emit: Emit) -> None:
        self.name, self.pace, self.batch_size, self.emit = name, Pace(steps), batch_size, emit
        self.reported = -math.inf  # seconds of `pace`

    def steps_done(self, done: int, curve: tuple[record.Epoch, ...]) -> None:
        """Emit an update if `REPORT_EVERY` seconds have passed since the last one."""
        self.pace.update(done)
        if done < self.pace.total and self.pace.seconds - self.reported >= REPORT_EVERY:
            self._report(curve)

    def epoch_done(self, done: int, curve: tuple[record.Epoch, ...]) -> None:
        """Emit an update at the end of an epoch."""
        self.pace.update(done)
        self._report(curve)

    def _report(self, curve: tuple[record.Epoch, ...]) -> None:
        self.reported = self.pace.seconds
        self.emit(
            RunUpdate(
                name=self.name,
                done=self.pace.done,
                steps=self.pace.total,
                epoch=len(curve),
                loss=curve[-1].loss if curve else None,
                top1=next((point.top1 for point in reversed(curve) if point.top1 is not None), None),
                images_per_second=self.pace.per_second * self.batch_size,
                seconds_left=self.pace.seconds_left,
            )
        )
