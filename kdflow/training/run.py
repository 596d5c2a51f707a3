"""One run, from its seed to its record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from kdflow.config import RunSettings
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.core.progress import Emit, Finished, Note
from kdflow.data import Loaded, load
from kdflow.models import create_model, load_exact, save_weights
from kdflow.models.features import FeatureExtractor, without_features
from kdflow.models.precision import check_supported, fold_batch_norm, make_forward, use_tf32
from kdflow.training import distributed, record, teacher_logits
from kdflow.training.device import device_name, pick_device
from kdflow.training.job import Job
from kdflow.training.loop import fit
from kdflow.training.step import new_student
from kdflow.training.teacher_logits import Online, TeacherSource
from kdflow.training.teacher_logits.all_views import StoredViews, read_views
from kdflow.training.teacher_logits.replay import Replay, ReplayCache


def run_job(job: Job, emit: Emit) -> None:
    """Train one model from its seed, going on from its checkpoint if there is one; write weights and log."""
    device = pick_device(job.compute.device, distributed.local_rank_or(alone=job.run_index))
    torch.set_num_threads(job.compute.threads)
    run = job.run
    check_supported(run.precision, with_features=run.method.loss is not None)
    use_tf32(run.precision.tf32)

    def note(text: str) -> None:
        emit(Note(job.name, text))

    data = load(job.dataset, run.train_images, device, job.compute.resolved_workers)
    _check_data(job.dataset, data, run)
    teacher, teacher_sha256 = None, None
    if job.teacher is not None:
        model, teacher_sha256 = load_teacher(job.teacher, run, device)
        teacher = _teacher_source(job, model, teacher_sha256, data, note)
    code = record.code_version()
    where = record.machine_info(device_name(device), job.compute.threads, data.train.workers, distributed.world_size())
    # What digits depend on. A run goes on with as many processes as it had, on any card of the same kind.
    identity = (
        run.sha256,
        data.sha256,
        teacher_sha256,
        code.sha256,
        where.device,
        where.threads,
        where.processes_per_run,
    )
    key = hashlib.sha256("/".join(map(str, identity)).encode()).hexdigest()
    folder = job.work_dir / "runs" / key[:16]
    with files.exclusive_folder(folder, "this run", note) if distributed.rank() == 0 else nullcontext():
        distributed.barrier()
        learner = new_student(run, data.train.labels)
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
            teacher_views_computed=progress.teacher_views_computed,
            teacher_views_read=progress.teacher_views_read,
        ),
        class_names=tuple(data.class_names),
    )
    record.write_record(job.log, log)
    emit(Finished(job.name, folder))


def _teacher_source(
    job: Job, model: nn.Module, teacher_sha256: str, data: Loaded, note: Callable[[str], None]
) -> TeacherSource:
    """Where the run takes the teacher's outputs from."""
    run = job.run
    assert run.teacher is not None
    ask = teacher_extractor(run, model)
    kind, dtype = run.logit_source
    if kind == "views":
        assert job.views_store is not None
        about = teacher_logits.cache_key(run, teacher_sha256, data.sha256)
        return StoredViews(ask, read_views(job.views_store, run, dtype, about), run.base_view)
    if kind == "replay":
        device = device_name(data.train.labels.device)
        about = teacher_logits.cache_key(run, teacher_sha256, data.sha256) | teacher_logits.plan_cache_key(run, device)
        shelf = ReplayCache(job.work_dir / "replay", about, int(job.compute.replay_gb * 1e9))
        return Replay(ask, shelf, about, run.classes, dtype, note)
    return Online(ask)


def teacher_extractor(run: RunSettings, teacher: nn.Module) -> FeatureExtractor:
    """How the run asks its teacher.

    Raises:
        UserError: the teacher has no such layer, or cannot be asked with this precision.
    """
    assert run.teacher is not None
    (name, recipe), precision = (run.teacher.name, run.teacher.model), run.precision
    if precision.fold_teacher:
        teacher = fold_batch_norm(name, teacher, run.image_size)
    forward = make_forward(teacher, precision.teacher, precision.compile)
    return FeatureExtractor(name, teacher, recipe if run.method.loss is not None else without_features(recipe), forward)


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
    sha256 = load_exact(model, weights)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False), sha256
