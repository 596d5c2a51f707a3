"""How long six methods of one pair and seed take, one after the other, online and with replay; and how far they differ.

    python benchmarks/replay.py [--data data/cifar100.h5 --teacher data/teacher/model.safetensors] [--images 1024]
                                [--pair resnet56_to_resnet20] [--epochs 2] [--json FILE]

Whole runs, as `dvc repro` does them one seed at a time, with their tests and checkpoints: online, replayed in float16
and in float32, in turn method by method; each replay begins with nothing kept. CIFAR-100's settings; without --data
the images are noise, and without --teacher its weights are fresh. Printed are the seconds, and the largest relative
difference of an epoch's loss between a replayed run and the online one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from machine import keep, told

from kdflow import config
from kdflow.config import Experiment
from kdflow.core.progress import Event
from kdflow.models import create_model, save_weights
from kdflow.training import record
from kdflow.training.job import Job
from kdflow.training.record import RunLog
from kdflow.training.run import run_job

ROOT = Path(__file__).parents[1]
METHODS = (
    "kd",
    "kd_tlcutmix",
    "kd_tlcutmix_pick",
    "kd_tlcutmix_pick_teacher_entropy",
    "kd_tlcutmix_pick_random",
    "kd_cutmix_interpolated",
)
SOURCES = ("online", "replay", "replay-float32")


def noise(experiment: Experiment, out: Path) -> None:
    """A dataset of CIFAR-100's form, with 500 images to test on."""
    from kdflow import data

    spec, rng = experiment.dataset.data, np.random.default_rng(0)
    splits = []
    for count in (spec.train_images, 500):
        images = rng.integers(256, size=(count, spec.image_size, spec.image_size, 3), dtype=np.uint8)
        splits.append(data.Split(images, np.arange(count) % spec.classes))
    made = data.Splits(splits[0], splits[1], [str(i) for i in range(spec.classes)])
    with h5py.File(out, "w") as file:
        file.attrs["classes"], file.attrs["sha256"] = made.class_names, data._digest(made)
        for key, split in zip(data.SPLITS, splits, strict=True):
            file[f"{key}/images"], file[f"{key}/labels"] = split.images, split.labels


def job(experiment: Experiment, method: str, source: str, asked: argparse.Namespace, folder: Path) -> Job:
    """One run."""
    params = experiment.params.model_copy(update={"teacher_logits": source})
    run = experiment.model_copy(update={"params": params}).student_run(method, 0)
    return Job(
        name=f"{method} {source}",
        run=run,
        budget=record.make_budget(run, experiment.dataset),
        dataset=asked.data,
        teacher=asked.teacher,
        views_store=None,
        weights=folder / "weights.safetensors",
        log=folder / f"{method}-{source}.json",
        work_dir=folder,
        compute=params.compute,
    )


def silent(event: Event) -> None:
    """Show nothing."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--pair", default="resnet56_to_resnet20")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="keep the figures here")
    asked = parser.parse_args()
    experiment = config.load(ROOT)
    pair = experiment.pairs[asked.pair]
    changed = {"dataset": "cifar100", "train_images": asked.images, "epochs": asked.epochs}
    params = experiment.params.model_copy(update={**changed, "teacher": pair.teacher, "student": pair.student})
    experiment = experiment.model_copy(update={"params": params})
    seconds = dict.fromkeys(SOURCES, 0.0)
    differ = dict.fromkeys(SOURCES, 0.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.data is None:
            asked.data = folder / "noise.h5"
            noise(experiment, asked.data)
        if asked.teacher is None:
            asked.teacher = folder / "teacher.safetensors"
            torch.manual_seed(0)
            save_weights(create_model(pair.teacher, experiment.models[pair.teacher], 100, 32), asked.teacher)
        print(f"{asked.pair}, {asked.images} images, {asked.epochs} epochs, {told()}")
        for method in METHODS:
            curves = {}
            for source in SOURCES:
                work = job(experiment, method, source, asked, folder)
                start = time.perf_counter()
                run_job(work, silent)
                seconds[source] += time.perf_counter() - start
                curves[source] = [point.loss for point in record.read_record(work.log, RunLog).curve]
                far = [abs(a / b - 1) for a, b in zip(curves[source], curves["online"], strict=True)]
                differ[source] = max(differ[source], *far)
            print(f"{method:34} " + "  ".join(f"{key} {value:.0f} s" for key, value in seconds.items()), flush=True)
    for source in SOURCES:
        ratio = seconds["online"] / seconds[source]
        print(f"{source:15} {seconds[source]:6.0f} s in all, online x{ratio:.2f}, losses within {differ[source]:.1e}")
    keep(asked.json, pair=asked.pair, images=asked.images, epochs=asked.epochs, seconds=seconds, differ=differ)


if __name__ == "__main__":
    main()
