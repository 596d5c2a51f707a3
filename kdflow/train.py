"""Training: one run from its seed to its record."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from kdflow import checkpoint, distributed, files, logits, record
from kdflow.checkpoint import Progress
from kdflow.config import RunSettings
from kdflow.data import Images, Loaded, load
from kdflow.epoch_plan import EpochPlan, draw_plan
from kdflow.errors import UserError
from kdflow.evaluate import accuracy
from kdflow.features import FeatureExtractor, bare
from kdflow.feed import feed_of
from kdflow.job import Job
from kdflow.logits import Counts, Online, Source
from kdflow.logits.replay import Replay, Shelf
from kdflow.logits.views import StoredViews, read_views
from kdflow.models import create_model, load_weights, save_weights
from kdflow.precision import check, folded, forward_of, use_tf32
from kdflow.progress import Emit, Finished, Note, Update
from kdflow.step import Done, Learner, Step, new_learner

REPORT_EVERY = 0.5  # seconds between two progress updates


def run_job(job: Job, emit: Emit) -> None:
    """Train one model from its seed, going on from its checkpoint if there is one; write weights and log."""
    device = pick_device(job.compute.device, distributed.place(alone=job.place))
    torch.set_num_threads(job.compute.threads)
    run = job.run
    check(run.precision, with_features=run.method.loss is not None)
    use_tf32(run.precision.tf32)

    def note(text: str) -> None:
        emit(Note(job.name, text))

    data = load(job.dataset, run.train_images, device, job.compute.readers)
    _check_data(job.dataset, data, run)
    teacher, teacher_sha256 = None, None
    if job.teacher is not None:
        model, teacher_sha256 = load_teacher(job.teacher, run, device)
        teacher = _source(job, model, teacher_sha256, data, note)
    code = record.code()
    where = record.machine(_device_name(device), job.compute.threads, data.train.workers, distributed.processes())
    # What digits depend on. A run goes on with as many processes as it had, on any card of the same kind.
    identity = (run.sha256, data.sha256, teacher_sha256, code.sha256, where.device, where.threads, where.processes)
    key = hashlib.sha256("/".join(map(str, identity)).encode()).hexdigest()
    folder = job.scratch / "runs" / key[:16]
    with files.held(folder, "this run", note) if distributed.rank() == 0 else nullcontext():
        distributed.wait_for_all()
        learner = new_learner(run, data.train.labels)
        progress = fit(job.name, run, data, learner, teacher, folder / "checkpoint.safetensors", key, emit)
    if distributed.rank() > 0:
        return
    weights_sha256 = save_weights(learner.student, job.weights)
    images = run.train_images * run.training.epochs
    log = record.RunLog(
        name=job.name,
        settings=run,
        settings_sha256=run.sha256,
        budget=job.budget,
        dataset_sha256=data.sha256,
        teacher_sha256=teacher_sha256,
        weights_sha256=weights_sha256,
        curve=progress.curve,
        code=code,
        machine=where,
        timing=record.Timing(
            started=progress.started,
            seconds=progress.seconds,
            images_per_second=images / progress.seconds,
            resumed=progress.resumed,
            asked=progress.asked,
            read=progress.read,
        ),
        class_names=tuple(data.class_names),
    )
    record.write(job.log, log)
    emit(Finished(job.name, folder))


def fit(
    name: str,
    run: RunSettings,
    data: Loaded,
    learner: Learner,
    teacher: Source | None,
    checkpoint_file: Path,
    key: str,
    emit: Emit,
) -> Progress:
    """Train for the epochs that the run's checkpoint has not seen; returns the finished progress.

    Raises:
        UserError: the loss is no longer finite.
    """
    training = run.training
    optimizer = torch.optim.SGD(
        learner.parameters(), lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
    )
    step, feed = Step(run, learner, teacher, optimizer), feed_of(data.train, run.views)
    progress = _resume(name, checkpoint_file, learner, optimizer, key, emit)
    steps_per_epoch = math.ceil(len(data.train) / training.batch_size)
    pace = _Pace(name, training.epochs * steps_per_epoch, training.batch_size, emit)
    for epoch in range(len(progress.curve), training.epochs):
        started = time.perf_counter()
        first = epoch * steps_per_epoch
        plan = _plan(run, epoch, data.train)
        if teacher is not None:
            teacher.begin(epoch, plan)
        steps, total = list[Done](), torch.zeros((), device=data.train.labels.device)
        for i, batch in enumerate(feed(plan)):
            steps.append(step(batch, run.learning_rate(first + i, steps_per_epoch)))
            total += steps[-1].loss * len(batch.labels)
            pace.steps_done(first + i + 1, progress.curve)
        _check_finite(name, run, epoch, steps)
        if teacher is not None:
            teacher.end()
        loss, first_loss = total.item() / len(data.train), steps[0].loss.item()
        lr = run.learning_rate(first, steps_per_epoch)
        test_now = (epoch + 1) % training.test_every == 0 or epoch + 1 == training.epochs
        top1 = accuracy(learner.student, data.test, run.views).top1 if test_now else None
        point = record.Epoch(
            epoch=epoch + 1, lr=lr, loss=loss, first_loss=first_loss, top1=top1, pick_ratio=_pick_ratio(steps)
        )
        seconds = progress.seconds + time.perf_counter() - started
        progress = progress.model_copy(update={"curve": (*progress.curve, point), "seconds": seconds})
        if teacher is not None:
            counts, teacher.counts = teacher.counts, Counts()
            asked, read = progress.asked + counts.asked, progress.read + counts.read
            progress = progress.model_copy(update={"asked": asked, "read": read})
        if distributed.rank() == 0:
            checkpoint.save(checkpoint_file, learner, optimizer, progress)
        pace.epoch_done(first + steps_per_epoch, progress.curve)
    return progress


def _plan(run: RunSettings, epoch: int, images: Images) -> EpochPlan:
    size, device = run.training.batch_size, images.labels.device
    return draw_plan(run.seed, epoch, len(images), size, run.image_size, run.views, run.method.strong, device)


def _check_finite(name: str, run: RunSettings, epoch: int, steps: list[Done]) -> None:
    """Look at an epoch's losses at its end: a look at every step would make the device wait for each."""
    wrong = torch.stack([done.loss for done in steps]).isfinite().logical_not().nonzero().flatten().tolist()
    if wrong:
        step = epoch * len(steps) + wrong[0]
        kept = f"of epoch {epoch}" if epoch else "none"
        raise UserError(
            f"{name}: the loss is {steps[wrong[0]].loss.item()} at step {step + 1} (epoch {epoch + 1}), learning rate "
            f"{run.learning_rate(step, len(steps)):g}; last checkpoint: {kept}"
        )


def _pick_ratio(steps: list[Done]) -> float | None:
    picked = [done.pick_ratio for done in steps if done.pick_ratio is not None]
    return torch.stack(picked).mean().item() if picked else None


def _source(job: Job, model: nn.Module, teacher_sha256: str, data: Loaded, note: Callable[[str], None]) -> Source:
    """Where the run takes the teacher's outputs from."""
    run = job.run
    assert run.teacher is not None
    ask = extractor(run, model)
    kind, dtype = run.store
    if kind == "views":
        assert job.store is not None
        about = logits.about(run, teacher_sha256, data.sha256)
        return StoredViews(ask, read_views(job.store, run, dtype, about), run.views)
    if kind == "replay":
        device = _device_name(data.train.labels.device)
        about = logits.about(run, teacher_sha256, data.sha256) | logits.about_plan(run, device)
        shelf = Shelf(job.scratch / "replay", about, int(job.compute.replay_gb * 1e9))
        return Replay(ask, shelf, about, run.classes, dtype, note)
    return Online(ask)


def extractor(run: RunSettings, teacher: nn.Module) -> FeatureExtractor:
    """How the run asks its teacher.

    Raises:
        UserError: the teacher has no such layer, or cannot be asked with this precision.
    """
    assert run.teacher is not None
    (name, recipe), precision = (run.teacher.name, run.teacher.model), run.precision
    if precision.fold_teacher:
        teacher = folded(name, teacher, run.image_size)
    forward = forward_of(teacher, precision.teacher, precision.compile)
    return FeatureExtractor(name, teacher, recipe if run.method.loss is not None else bare(recipe), forward)


def _check_data(file: Path, data: Loaded, run: RunSettings) -> None:
    """Refuse a file that is whole but of another dataset: its labels might be no classes of the model."""

    def told(images: int, classes: int, size: int) -> str:
        return f"{images} training images of {classes} classes at {size} px"

    found = told(len(data.train), len(data.class_names), data.train.image_size)
    expected = told(run.train_images, run.classes, run.image_size)
    if found != expected:
        raise UserError(f"{file}: {found}, expected {expected}; `dvc repro -f prepare` makes it anew")


def load_teacher(weights: Path, run: RunSettings, device: torch.device) -> tuple[nn.Module, str]:
    """The run's teacher in eval mode, without gradients, and the SHA-256 of its file."""
    assert run.teacher is not None
    model = create_model(run.teacher.name, run.teacher.model, run.classes, run.image_size)
    sha256 = load_weights(model, weights)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False), sha256


def pick_device(name: str, place: int = 0) -> torch.device:
    """The device called `name`; auto takes a GPU where there is one, and deals several out by `place`.

    Raises:
        UserError: the device is not there.
    """
    if name == "auto":
        return card(place, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"compute.device (--device): {name}: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def card(place: int, cards: int) -> torch.device:
    """The card of the run in `place` (0, 1, ...) of those side by side: in turn, several to a card if need be."""
    return torch.device(f"cuda:{place % cards}" if cards else "cpu")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _resume(
    name: str, file: Path, learner: Learner, optimizer: torch.optim.Optimizer, key: str, emit: Emit
) -> Progress:
    """From the checkpoint, or the one before if that is damaged, or from the first epoch."""
    for candidate in (file, checkpoint.before(file)):
        try:
            progress = checkpoint.load(candidate, learner, optimizer, key)
        except ValueError as error:
            emit(Note(name, f"{error}; it is left out"))
            continue
        if progress is not None:
            emit(Note(name, f"going on after epoch {len(progress.curve)}"))
            return progress
    return Progress(run=key, started=datetime.now(UTC).isoformat(timespec="seconds"))


class _Pace:
    """Measures a run's speed and reports it, without asking the device for anything."""

    def __init__(self, name: str, steps: int, batch_size: int, emit: Emit) -> None:
        self.name, self.steps, self.batch_size, self.emit = name, steps, batch_size, emit
        self.began: tuple[float, int] | None = None
        self.reported = -math.inf

    def steps_done(self, done: int, curve: tuple[record.Epoch, ...]) -> None:
        """Report when it is time."""
        now = time.perf_counter()
        self.began = self.began or (now, done)
        if done < self.steps and now - self.reported >= REPORT_EVERY:
            self._report(now, done, curve)

    def epoch_done(self, done: int, curve: tuple[record.Epoch, ...]) -> None:
        """Report every epoch's end."""
        self._report(time.perf_counter(), done, curve)

    def _report(self, now: float, done: int, curve: tuple[record.Epoch, ...]) -> None:
        began, first = self.began or (now, done)
        speed = (done - first) / (now - began) if now > began else 0.0  # steps a second
        self.reported = now
        self.emit(
            Update(
                name=self.name,
                done=done,
                steps=self.steps,
                epoch=len(curve),
                loss=curve[-1].loss if curve else None,
                top1=next((point.top1 for point in reversed(curve) if point.top1 is not None), None),
                images_per_second=speed * self.batch_size,
                seconds_left=(self.steps - done) / speed if speed else None,
            )
        )
