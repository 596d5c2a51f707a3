"""One run, from its seed to its record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kdflow.config import RunSettings
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.core.progress import Emit, EpochDone, Finished, Note, Started
from kdflow.data import Loaded, load
from kdflow.models import create_model, load_exact, save_weights, to_device
from kdflow.models.features import FeatureExtractor, without_features
from kdflow.models.onnx_runtime import onnxruntime_forward
from kdflow.models.precision import Forward, check_supported, fold_batch_norm, make_forward, use_tf32
from kdflow.training import distributed, record, teacher_logits
from kdflow.training.checkpoint import RunProgress
from kdflow.training.device import device_name, pick_device
from kdflow.training.graph import check_graph
from kdflow.training.job import Job
from kdflow.training.loop import fit
from kdflow.training.step import StudentWithLoss, new_student
from kdflow.training.teacher_logits import Online, TeacherSource
from kdflow.training.teacher_logits.all_views import StoredViews, read_views
from kdflow.training.teacher_logits.replay import Replay, ReplayCache


@dataclass(frozen=True)
class _Inputs:
    """All that decides the numbers of a run besides its settings."""

    data_sha256: str
    teacher_sha256: str | None
    initial_sha256: str | None
    code: record.Code
    machine: record.Machine

    def key(self, run: RunSettings) -> str:
        """Return the key of the run's checkpoint: a run resumes only with the same numbers, on any GPU of one kind."""
        machine = self.machine
        parts: tuple[object, ...] = (
            run.sha256,
            self.data_sha256,
            self.teacher_sha256,
            self.code.sha256,
            machine.device,
            "+".join(version for name, version in machine.versions.items() if name in ("torch", "onnxruntime")),
            machine.threads,
            machine.processes_per_run,
        )
        if self.initial_sha256 is not None:
            parts += (self.initial_sha256,)
        return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def run_job(job: Job, emit: Emit) -> None:
    """Train one model from its seed, or from its checkpoint if there is one; write its weights and its log."""
    device = pick_device(job.compute.device, distributed.local_rank_or(alone=job.run_index))
    torch.set_num_threads(job.compute.threads)
    run = job.run
    run.check_user_code()
    check_supported(run.precision, with_features=run.method.needs_features)
    check_graph(run, device, distributed.world_size())
    use_tf32(run.precision.tf32)

    def note(text: str) -> None:
        emit(Note(job.name, text))

    def on_epoch(point: record.Epoch) -> None:
        emit(EpochDone(job.name, point.model_dump()))

    data = load(job.dataset, run.train_images, device, job.compute.resolved_workers)
    _check_data(job.dataset, data, run)
    teacher, teacher_sha256 = None, None
    if job.teacher is not None:
        model, teacher_sha256 = load_teacher(job.teacher, run, device)
        teacher = _teacher_source(job, model, teacher_sha256, data, note)
    workers, runtime = data.train.workers, run.precision.teacher_runtime
    machine = record.machine_info(device_name(device), job.compute.threads, workers, distributed.world_size(), runtime)
    initial_sha256 = None if job.initial is None else files.sha256(job.initial)
    inputs = _Inputs(data.sha256, teacher_sha256, initial_sha256, record.code_version(), machine)
    key = inputs.key(run)
    folder = job.work_dir / "runs" / key[:16]
    with files.exclusive_folder(folder, "this run", note) if distributed.rank() == 0 else nullcontext():
        distributed.barrier()
        learner = new_student(run, data.train.labels, job.initial)
        emit(Started(job.name, key))
        progress = fit(job.name, run, data, learner, teacher, folder / "checkpoint.safetensors", key, emit, on_epoch)
    if distributed.rank() > 0:
        return
    weights_sha256 = save_weights(learner.exported, job.weights)
    record.write_record(job.log, _log(job, inputs, progress, learner, weights_sha256, data.class_names))
    emit(Finished(job.name, folder))


def _log(
    job: Job,
    inputs: _Inputs,
    progress: RunProgress,
    learner: StudentWithLoss,
    weights_sha256: str,
    class_names: list[str],
) -> record.RunLog:
    run, initial = job.run, None
    if inputs.initial_sha256 is not None:
        initial = record.InitialRecord(sha256=inputs.initial_sha256, head=learner.head_note)
    return record.RunLog(
        name=job.name,
        settings=run,
        settings_sha256=run.sha256,
        budget=job.budget,
        dataset_sha256=inputs.data_sha256,
        teacher_sha256=inputs.teacher_sha256,
        weights_sha256=weights_sha256,
        curve=progress.curve,
        code=inputs.code,
        machine=inputs.machine,
        timing=record.Timing(
            started=progress.started,
            seconds=progress.seconds,
            images_per_second=run.fitted_images * len(progress.curve) / progress.seconds,
            resumed=progress.resumed,
            teacher_views_computed=progress.teacher_views_computed,
            teacher_views_read=progress.teacher_views_read,
        ),
        class_names=tuple(class_names),
        initial=initial,
        teacher_members=job.teacher_members,
    )


def _teacher_source(
    job: Job, model: nn.Module, teacher_sha256: str, data: Loaded, note: Callable[[str], None]
) -> TeacherSource:
    """Return the source of the teacher's outputs that the settings name."""
    run = job.run
    assert run.teacher is not None
    teacher = teacher_extractor(run, model)
    source, dtype = run.logit_source
    key = teacher_logits.cache_key(run, teacher_sha256, data.sha256)
    if "replay" in source:
        plan_key = key | teacher_logits.plan_cache_key(run, device_name(data.train.labels.device))
        cache = ReplayCache(job.work_dir / "replay", plan_key, int(job.compute.replay_gb * 1e9))
        computed: TeacherSource = Replay(teacher, cache, plan_key, run.classes, dtype, note)
    else:
        computed = Online(teacher)
    if not run.reads_views:
        return computed
    assert job.views_store is not None
    return StoredViews(computed, read_views(job.views_store, run, dtype, key), run.base_view)


def teacher_extractor(run: RunSettings, teacher: nn.Module) -> FeatureExtractor:
    """Return the teacher with the run's precision, and with features if the method needs them.

    Its input is normalised as the student's; it sees the pixels as in its training.

    Raises:
        UserError: the teacher has no layer of that name, or does not support the precision.
    """
    assert run.teacher is not None
    (name, recipe), precision = (run.teacher.name, run.teacher.model), run.precision
    if precision.fold_teacher:
        teacher = fold_batch_norm(name, teacher, run.image_size)
    if precision.teacher_runtime == "onnxruntime":
        forward = onnxruntime_forward(name, teacher, run.image_size)
    else:
        forward = make_forward(teacher, precision.teacher, precision.compile)
    recipe = recipe if run.method.needs_features else without_features(recipe)
    return FeatureExtractor(name, teacher, recipe, renormalised(forward, run))


def renormalised(forward: Forward, run: RunSettings) -> Forward:
    """Return `forward` for images that have the student's mean and standard deviation instead of the teacher's."""
    teacher, view = run.teacher, run.base_view
    if teacher is None or teacher.mean is None or teacher.std is None:
        return forward

    def column(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values)).reshape(1, 3, 1, 1)

    scale = column(s / t for s, t in zip(view.std, teacher.std, strict=True))
    shift = column((s - t) / std for s, t, std in zip(view.mean, teacher.mean, teacher.std, strict=True))
    return lambda x: forward(x * scale.to(x.device) + shift.to(x.device))


def _check_data(file: Path, data: Loaded, run: RunSettings) -> None:
    """Refuse the intact file of another dataset: its labels might not be classes of the model."""

    def describe(images: int, classes: int, size: int) -> str:
        return f"{images} training images of {classes} classes at {size} px"

    found = describe(len(data.train), len(data.class_names), data.train.image_size)
    expected = describe(run.train_images, run.classes, run.image_size)
    if found != expected:
        raise UserError(f"{file}: {found}, expected {expected}; `dvc repro -f prepare` prepares it again")


def load_teacher(weights: Path, run: RunSettings, device: torch.device) -> tuple[nn.Module, str]:
    """Return the run's teacher in eval mode, without gradients, and the SHA-256 of its file."""
    assert run.teacher is not None
    model = create_model(run.teacher.name, run.teacher.model, run.classes, run.image_size)
    sha256 = load_exact(model, weights)
    return to_device(model, device).eval().requires_grad_(False), sha256
