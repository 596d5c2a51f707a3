"""Export of a student: write the file, verify it against the student on test images, and measure its latency."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdflow.config import Architecture, RunSettings, Settings
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.core.machine import default_loader_workers
from kdflow.data import Images, ImageSet, Loaded, balanced_order, load
from kdflow.data.image_files import ImageFiles
from kdflow.export import latency
from kdflow.export.card import ModelCard, make_card
from kdflow.export.formats import Runner, format_by_name
from kdflow.export.int8 import CALIBRATION_IMAGES, Quantisation, compare_accuracy, quantise, write_card
from kdflow.export.latency import BATCH_SIZES, median_latency
from kdflow.export.locate import StudentFiles
from kdflow.models import create_model, load_exact
from kdflow.models.cost import count_cost
from kdflow.training import record
from kdflow.training.evaluate import BATCH, predict_logits

MAX_IMAGES = 1000  # test images for the verification
# Relative to the largest logit: float32 sums differ this much when kernels add in another order.
TOLERANCE = 1e-4


class Verification(Settings):
    """Comparison of an exported file with the student on test images.

    `max_difference` and `largest_logit` are absolute values of logits; `tolerance` is the allowed ratio of the two.
    `top1_mismatches` counts the images whose first class differs, `top5_mismatches` those whose first five differ.
    """

    images: int
    max_difference: float
    largest_logit: float
    tolerance: float
    top1_mismatches: int
    top5_mismatches: int

    def __str__(self) -> str:
        return (
            f"logits of {self.images:,} test images differ by at most {self.max_difference:.1e} "
            f"(largest logit {self.largest_logit:.1f}, tolerance {self.tolerance:.0e} of it); "
            f"top-1 differs on {self.top1_mismatches} images, top-5 on {self.top5_mismatches}"
        )


class ModelCost(Settings):
    """The cost of an exported model: bytes of its file, parameters, FLOPs of one image, and latency.

    `latency_ms` has the median milliseconds of one batch by batch size.
    """

    model: str
    file_bytes: int
    params: int
    flops: int
    latency_ms: dict[int, float]


class ExportReport(Settings):
    """The content of FILE.json beside an exported file. Latency is the median of `timing_rounds` rounds.

    `verification` is None if the file was not compared with the student. `int8` has the accuracy of a file in 8-bit
    integers, and `float32` the cost of the same student in float32; both are None for other files. The verification of
    a file in 8-bit integers is that of the float32 file that it was made from.
    """

    file: str
    format: str
    sha256: str
    verification: Verification | None
    int8: Quantisation | None = None
    student: ModelCost
    float32: ModelCost | None = None
    teacher: ModelCost | None
    threads: int
    timing_rounds: int
    machine: record.Machine
    model_card: ModelCard


def report_path(file: Path) -> Path:
    """Return the path of an exported file's report."""
    return file.with_name(f"{file.name}.json")


def export(
    student: StudentFiles, format_name: str, out: Path | None, threads: int, *, int8: bool = False
) -> tuple[Path, ExportReport]:
    """Write a student to one file, verify the file and measure it; return the file and its report.

    Args:
        student: the student's files. Without a dataset, the exported file is not verified.
        format_name: a module of `kdflow.export.formats`.
        out: the file; None writes to the working directory, with a name of dataset, student, method and seed.
        threads: CPU threads.
        int8: write weights and activations as 8-bit integers; the file is compared with float32 in accuracy and cost.

    Raises:
        UserError: weights or dataset are not those in the student's log, or the exported file gives other logits than
            the student, or it cannot be quantised; then `out` is left as it was.
    """
    file_format, run = format_by_name(format_name), student.log.settings
    out = out or _default_name(student, file_format.SUFFIX, int8=int8)
    file, report_file = files.output_file(out), files.output_file(report_path(out))
    _check_out(out, file_format, format_name, student)
    if int8:
        _check_int8(format_name, student)
    torch.set_num_threads(threads)
    architecture = Architecture(name=run.architecture, model=run.model)
    model = _load_model(architecture, run, student.weights, student.log.weights_sha256)
    data = None if student.dataset is None else _load_dataset(student, student.dataset)
    card = make_card(student.log, _class_names(student.log) if data is None else data.class_names)
    with files.atomic_write(file) as part, tempfile.TemporaryDirectory() as work_dir:
        file_format.write(model, card, part)
        runners = {"student": file_format.runner(part, card, threads)}
        verification = None if data is None else verify(model, runners["student"], card, data.test)
        models, sizes = {"student": model}, {"student": part.stat().st_size}
        if student.teacher is not None and run.teacher is not None:
            teacher = _load_model(run.teacher, run, student.teacher, student.log.teacher_sha256)
            teacher_file = Path(work_dir) / f"teacher{file_format.SUFFIX}"
            teacher_card = _write_teacher(teacher, run.teacher, card, file_format, teacher_file)
            runners["teacher"] = file_format.runner(teacher_file, teacher_card, threads)
            models["teacher"], sizes["teacher"] = teacher, teacher_file.stat().st_size
        quantised = None
        if int8 and data is not None:
            runners["float32"], models["float32"], sizes["float32"] = runners["student"], model, sizes["student"]
            runners["student"], quantised, card = _quantise(part, runners["float32"], card, data, threads)
            sizes["student"] = part.stat().st_size
        costs = _measure(models, sizes, runners, run)
    report = ExportReport(
        file=out.name,
        format=format_name,
        sha256=files.sha256(out),
        verification=verification,
        int8=quantised,
        student=costs["student"],
        float32=costs.get("float32"),
        teacher=costs.get("teacher"),
        threads=threads,
        timing_rounds=latency.ROUNDS,
        machine=record.machine_info("cpu", threads, 0, 1),
        model_card=card,
    )
    record.write_record(report_file, report)
    return out, report


def _quantise(
    file: Path, float32: Runner, card: ModelCard, data: Loaded, threads: int
) -> tuple[Runner, Quantisation, ModelCard]:
    """Replace an ONNX file and its model card by those in 8-bit integers; return the runner and the new card too.

    `float32` runs the file as it was.
    """
    file_format, base_view = format_by_name("onnx"), card.settings.base_view
    images = stratified_subset(data.train, CALIBRATION_IMAGES)
    with _hint():
        quantise(file, file, images, base_view)
        run = file_format.runner(file, card, threads)
        quantised = compare_accuracy(float32, run, data.test, base_view, len(images))
    card = card.model_copy(update={"precision": "int8", "top1": quantised.top1})
    write_card(file, card)
    return run, quantised, card


def _default_name(student: StudentFiles, suffix: str, *, int8: bool) -> Path:
    run, method = student.log.settings, student.role if student.role == "teacher" else student.weights.parent.name
    return Path(f"{run.dataset}-{run.architecture}-{method}-seed{run.seed}{'-int8' if int8 else ''}{suffix}")


def _check_out(out: Path, file_format: Any, format_name: str, student: StudentFiles) -> None:
    """Refuse an output file with a wrong suffix, and one that would overwrite weights."""
    if out.suffix != file_format.SUFFIX:
        raise UserError(f"--out: {out}: the name of a file in format {format_name} ends with {file_format.SUFFIX}")
    for role, file in (("student", student.weights), ("teacher", student.teacher)):
        if file is not None and out.resolve() == file.resolve():
            raise UserError(f"--out: {out}: is the file of the {role}'s weights; choose another name")
    if format_name == "safetensors" and out.exists() and file_format.read_metadata(out) is None:
        raise UserError(f"--out: {out}: has weights that `kdflow export` did not write; choose another name")


def _write_teacher(
    teacher: nn.Module, architecture: Architecture, card: ModelCard, file_format: Any, out: Path
) -> ModelCard:
    """Write the teacher of the student that `card` describes, to time it; return its card."""
    settings = card.settings.model_copy(update={"architecture": architecture.name, "model": architecture.model})
    card = card.model_copy(update={"settings": settings})
    file_format.write(teacher, card, out)
    return card


def _check_int8(format_name: str, student: StudentFiles) -> None:
    """Refuse another format, and a student without its dataset."""
    if format_name != "onnx":
        raise UserError(f"--int8: is for --format onnx, not for {format_name}")
    if student.dataset is None:
        raise UserError("--int8: needs training images and test images of the dataset; leave out --no-verify")


def _load_model(architecture: Architecture, run: RunSettings, file: Path, sha256: str | None) -> nn.Module:
    model = create_model(architecture.name, architecture.model, run.classes, run.image_size)
    load_exact(model, file, sha256)
    return model.eval()


def _class_names(log: record.RunLog) -> list[str]:
    if not log.class_names:
        raise UserError(f"--no-verify: the log of {log.name} has no names of classes; export with the dataset")
    return [*log.class_names]


@contextmanager
def _hint() -> Iterator[None]:
    """Add the option that needs no images to the error of images that cannot be read; they may have moved."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; or export with --no-verify") from None


def _load_dataset(student: StudentFiles, file: Path) -> Loaded:
    """Load the dataset that the student was trained on."""
    log = student.log
    with _hint():
        data = load(file, log.settings.train_images, torch.device("cpu"), default_loader_workers())
    if data.sha256 != log.dataset_sha256:
        raise UserError(
            f"{file}: sha256 is {data.sha256[:12]}..., the student was trained on {log.dataset_sha256[:12]}..."
        )
    return data


def stratified_subset(images: Images, max_images: int) -> Images:
    """Return at most `max_images` of the images, as many of each class as possible."""
    if len(images) <= max_images:
        return images
    kept = balanced_order(images.labels.numpy())[:max_images]
    kept.sort()
    if isinstance(images, ImageSet):
        return ImageSet(images.images[torch.from_numpy(kept)], images.labels[torch.from_numpy(kept)])
    assert isinstance(images, ImageFiles), "prepared datasets are read"
    return dataclasses.replace(images, files=images.files.take(kept), labels=images.labels[torch.from_numpy(kept)])


def verify(model: nn.Module, run: Runner, card: ModelCard, test: Images) -> Verification:
    """Compare an exported file with the model that it was made from, on at most `MAX_IMAGES` test images.

    Args:
        model: the model.
        run: the exported file's runner.
        card: its model card.
        test: the test images.

    Raises:
        UserError: a logit differs by more than `TOLERANCE` of the largest one, or an image cannot be read.
    """
    images, base_view = stratified_subset(test, MAX_IMAGES), card.settings.base_view
    with _hint():
        expected = predict_logits(model, images, base_view)
    batches = images.for_testing(BATCH, base_view, slice(0, len(images)))
    actual = torch.cat([run(batch) for batch in batches])
    difference = float((actual.double() - expected.double()).abs().max())
    largest = float(expected.abs().max())
    verification = Verification(
        images=len(images),
        max_difference=difference,
        largest_logit=largest,
        tolerance=TOLERANCE,
        top1_mismatches=_mismatches(actual, expected, 1),
        top5_mismatches=_mismatches(actual, expected, min(5, expected.shape[1])),
    )
    if not difference <= TOLERANCE * max(1.0, largest):  # NaN is refused too
        raise UserError(f"not exported: {verification}")
    return verification


def _mismatches(a: Tensor, b: Tensor, k: int) -> int:
    """Count the images whose first `k` classes are not the same in the same order; logits are [n, classes]."""
    return int((a.topk(k).indices != b.topk(k).indices).any(1).sum())


def _measure(
    models: dict[str, nn.Module], sizes: dict[str, int], runners: dict[str, Runner], run: RunSettings
) -> dict[str, ModelCost]:
    """Return the cost of each model by its role."""
    latencies = {batch_size: median_latency(runners, run.image_size, batch_size) for batch_size in BATCH_SIZES}
    names: dict[str, Any] = {"teacher": run.teacher and run.teacher.name}
    costs = {}
    for role, model in models.items():
        cost = count_cost(model, run.image_size)
        costs[role] = ModelCost(
            model=str(names.get(role, run.architecture)),
            file_bytes=sizes[role],
            params=cost.params,
            flops=cost.flops,
            latency_ms={batch_size: latencies[batch_size][role] for batch_size in BATCH_SIZES},
        )
    return costs
