"""Accuracy on few photos: pretrained weights, optimisers, distillation and 8-bit integers; three seeds each.

    python benchmarks/photos.py WORK --photos FOLDER --cifar FILE --others FOLDER [--epochs 6] [--json FILE]

- FOLDER of `--photos`: `train/<class>/` and `val/<class>/`. The published results are those of ten classes of
  Tiny ImageNet, every twentieth of its sorted class names, with 100 images each for training and 50 for testing.
- FILE of `--cifar`: a CIFAR-100 ResNet56, for images of 32 px.
- FOLDER of `--others`: other classes, on which a torchvision model is trained first, for images of 64 px.

A second call with the same WORK resumes an interrupted one. Optimiser and learning rate are compared on a
fifth of the training images, which was held out; the test images choose nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import save_results
from ruamel.yaml import YAML

from kdflow import config
from kdflow.config import Experiment, PreparedDataset
from kdflow.pipeline.distill import student_jobs
from kdflow.pipeline.prepare import prepare_dataset
from kdflow.pipeline.teacher import make_teacher
from kdflow.pipeline.train import train
from kdflow.training import record
from kdflow.training.record import RunLog, TeacherRecord

KDFLOW = [sys.executable, "-m", "kdflow"]
SEEDS = [0, 1, 2]
SGD = {"schedule": "cosine"}
ADAMW = {"schedule": "cosine", "optimizer": "adamw"}
MODELS = "mobilenet_v3_small: {family: torchvision, options: {name: mobilenet_v3_small}}\n"
Row = dict[str, Any]


def main() -> None:
    """Run all parts and print their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    for name in ("photos", "cifar", "others"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6, help="epochs of a model that starts from weights")
    parser.add_argument("--others-epochs", type=int, default=1, help="epochs on the other classes")
    parser.add_argument("--parallel", type=int, default=1, help="number of parallel runs")
    parser.add_argument("--student-epochs", type=int, default=30, help="epochs of the distilled students")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    parts = {}
    for part in (optimisers, distillation, starts, torchvision_starts):
        parts[part.__name__] = part(options)
        print(json.dumps({part.__name__: parts[part.__name__]}, indent=1), flush=True)
    save_results(options.json, seeds=SEEDS, epochs=options.epochs, student_epochs=options.student_epochs, parts=parts)


def optimisers(options: argparse.Namespace) -> dict[str, Row]:
    """ResNet56 from the CIFAR-100 weights: SGD and AdamW, by the accuracy on held-out training images."""
    rows = {}
    for name, lr, training in (
        ("sgd 0.003", 0.003, SGD),
        ("sgd 0.01", 0.01, SGD),
        ("adamw 0.0003", 0.0003, ADAMW),
        ("adamw 0.001", 0.001, ADAMW),
    ):
        settings = {"lr": lr, "training": {**training, "val_share": 0.2}, "epochs": max(1, options.epochs // 2)}
        rows[name] = _students(options, f"held-out {name}", settings | _resnet56(options))["ce"]
    return rows


def starts(options: argparse.Namespace) -> dict[str, Row]:
    """ResNet56 from the CIFAR-100 weights, and from random ones with the recipe's learning rate."""
    weights = {**_resnet56(options), "epochs": options.epochs, "training": SGD}
    return {
        "pretrained": _students(options, "pretrained", {**weights, "lr": 0.01})["ce"],
        "random": _students(options, "random", {**weights, "student_init": None})["ce"],
    }


def distillation(options: argparse.Namespace) -> dict[str, Row]:
    """ResNet8 without a teacher and with KD; the ResNet56 teacher starts from the weights."""
    teacher = {
        "teacher": "resnet56",
        "teacher_init": _weights(options.cifar),
        "teacher_epochs": options.epochs,
        "teacher_training": {**SGD, "lr": 0.01},
    }
    settings = {"student": "resnet8", "epochs": options.student_epochs, "training": SGD, "methods": ["ce", "kd"]}
    rows = _students(options, "distillation", {**teacher, **settings})
    for file in ("kd/seed0.safetensors", "teacher/model.safetensors"):
        rows[f"int8 {file}"] = _int8(options.work / "distillation" / file, _dataset(options.photos, 32, options.work))
    return rows


def torchvision_starts(options: argparse.Namespace) -> dict[str, Row]:
    """MobileNetV3-small of torchvision at 64 px, from weights trained on the other classes, and from random ones."""
    model = {"student": "mobilenet_v3_small", "epochs": options.epochs}
    settings = {"teacher": model["student"], "teacher_epochs": options.others_epochs, "teacher_training": SGD}
    experiment, others = _experiment(options, options.others, 64, settings), options.work / "others"
    top1 = _teacher(experiment, _dataset(options.others, 64, options.work), others)
    rows = {"the other classes": {"top1": top1}}
    for name, changes in (
        ("pretrained", {"student_init": _weights(others / "model.safetensors"), "lr": 0.01}),
        ("random", {}),
    ):
        rows[name] = _students(options, f"mobilenet {name}", {**model, "training": SGD, **changes}, size=64)["ce"]
    return rows


def _resnet56(options: argparse.Namespace) -> Row:
    return {"student": "resnet56", "student_init": _weights(options.cifar)}


def _weights(file: Path) -> Row:
    return {"file": str(file.resolve()), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _students(options: argparse.Namespace, name: str, settings: Row, *, size: int = 32) -> dict[str, Row]:
    """Train the students of all methods and seeds, resuming what an interrupted call began; return a row per method."""
    experiment = _experiment(options, options.photos, size, {"methods": ["ce"], **settings})
    folder, dataset = options.work / name.replace(" ", "-"), _dataset(options.photos, size, options.work)
    rows, teacher = {}, None
    if any(experiment.student_run(method, 0).teacher for method in experiment.params.methods):
        teacher = folder / "teacher"
        rows["teacher"] = {"top1": _teacher(experiment, dataset, teacher)}
    for method in experiment.params.methods:
        jobs = student_jobs(experiment, method, dataset, teacher, None, folder / method, folder / ".kdflow")
        missing = [job for job in jobs if not job.log.exists()]
        if missing:
            train(f"{name} {method}", missing, experiment.params.compute)
        logs = [record.read_record(job.log, RunLog) for job in jobs]
        rows[method] = _row([log.curve[-1].top1 for log in logs])
        if logs[0].curve[-1].held_out_top1 is not None:
            rows[method] = _row([log.curve[-1].held_out_top1 for log in logs])
    return rows


def _teacher(experiment: Experiment, dataset: Path, out: Path) -> float:
    """Train the teacher if that has not been done; return its accuracy."""
    if not (out / "record.json").exists():
        make_teacher(experiment, dataset, out, out.parent / ".kdflow")
    return record.read_record(out / "record.json", TeacherRecord).accuracy.top1


def _experiment(options: argparse.Namespace, photos: Path, size: int, settings: Row) -> Experiment:
    """Return an experiment on a folder of photos, whose images it prepares if that has not been done."""
    project = options.work / "project"
    shutil.rmtree(project, ignore_errors=True)
    subprocess.run([*KDFLOW, "init", project], check=True, stdout=subprocess.DEVNULL)
    (project / "recipes/models.yaml").write_text(MODELS)
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params.update({"dataset": {"folder": str(photos.resolve()), "image_size": size}, "seeds": SEEDS, **settings})
    params["compute"].update({"device": "cpu", "max_parallel_runs": options.parallel, "loader_workers": 0})
    yaml.dump(params, project / "params.yaml")
    experiment, dataset = config.load(project), _dataset(photos, size, options.work)
    if not dataset.with_suffix(".json").exists():
        prepare_dataset(experiment, dataset, options.work, dataset.with_suffix(".json"))
    prepared = PreparedDataset.model_validate_json(dataset.with_suffix(".json").read_text())
    return experiment.model_copy(update={"prepared": prepared, "datasets": {prepared.name: prepared.dataset}})


def _dataset(photos: Path, size: int, work: Path) -> Path:
    return work / f"{photos.name}-{size}.h5"


def _row(values: list[float]) -> Row:
    return {"values": values, "mean": statistics.mean(values), "std": statistics.stdev(values)}


def _int8(weights: Path, dataset: Path) -> Row:
    out = weights.with_suffix(".onnx")
    options = ["--format", "onnx", "--int8", "--data", dataset, "--out", out]
    subprocess.run([*KDFLOW, "export", weights, *options], check=True, stdout=subprocess.DEVNULL)
    report = json.loads(out.with_name(f"{out.name}.json").read_text())
    models = {name: report[name] for name in ("float32", "student")}
    keys = ("file_bytes", "latency_ms")
    return {**report["int8"], **{name: {key: model[key] for key in keys} for name, model in models.items()}}


if __name__ == "__main__":
    main()
