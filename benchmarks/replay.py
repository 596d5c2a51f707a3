"""Benchmark of replay: six methods of one pair and seed, one after the other, online and with replay.

    python benchmarks/replay.py [--data data/cifar100.h5 --teacher data/teacher/model.safetensors] [--images 1024]
                                [--pair resnet56_to_resnet20] [--epochs 2] [--json FILE]

Whole runs with evaluation and checkpoints, as by `dvc repro`: online, replay in float16 and replay in float32, in turn
for each method; both replays start without stored logits. The settings are CIFAR-100's; without --data the images are
noise, and without --teacher its weights are random. It prints the seconds, and the largest relative difference of an
epoch's loss between a run with replay and the online run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from machine import describe_machine, save_results

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
    """Write a dataset of noise with CIFAR-100's shape and 500 test images."""
    from kdflow import data

    spec, rng = experiment.dataset.data, np.random.default_rng(0)
    splits = []
    for count in (spec.train_images, 500):
        images = rng.integers(256, size=(count, spec.image_size, spec.image_size, 3), dtype=np.uint8)
        splits.append(data.Split(images, np.arange(count) % spec.classes))
    dataset = data.Splits(splits[0], splits[1], [str(i) for i in range(spec.classes)])
    with h5py.File(out, "w") as file:
        file.attrs["classes"], file.attrs["sha256"] = dataset.class_names, data._digest(dataset)
        for key, split in zip(data.SPLITS, splits, strict=True):
            file[f"{key}/images"], file[f"{key}/labels"] = split.images, split.labels


def job(experiment: Experiment, method: str, source: str, args: argparse.Namespace, folder: Path) -> Job:
    """Return the job of one run."""
    params = experiment.params.model_copy(update={"teacher_logits": source})
    run = experiment.model_copy(update={"params": params}).student_run(method, 0)
    return Job(
        name=f"{method} {source}",
        run=run,
        budget=record.make_budget(run, experiment.dataset),
        dataset=args.data,
        teacher=args.teacher,
        views_store=None,
        weights=folder / "weights.safetensors",
        log=folder / f"{method}-{source}.json",
        work_dir=folder,
        compute=params.compute,
    )


def ignore(event: Event) -> None:
    """Drop an event."""


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--pair", default="resnet56_to_resnet20")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    experiment = config.load(ROOT)
    pair = experiment.pairs[args.pair]
    changed = {"dataset": "cifar100", "train_images": args.images, "epochs": args.epochs}
    params = experiment.params.model_copy(update={**changed, "teacher": pair.teacher, "student": pair.student})
    experiment = experiment.model_copy(update={"params": params})
    seconds = dict.fromkeys(SOURCES, 0.0)
    largest = dict.fromkeys(SOURCES, 0.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.data is None:
            args.data = folder / "noise.h5"
            noise(experiment, args.data)
        if args.teacher is None:
            args.teacher = folder / "teacher.safetensors"
            torch.manual_seed(0)
            save_weights(create_model(pair.teacher, experiment.models[pair.teacher], 100, 32), args.teacher)
        print(f"{args.pair}, {args.images} images, {args.epochs} epochs, {describe_machine()}")
        for method in METHODS:
            curves = {}
            for source in SOURCES:
                work = job(experiment, method, source, args, folder)
                start = time.perf_counter()
                run_job(work, ignore)
                seconds[source] += time.perf_counter() - start
                curves[source] = [point.loss for point in record.read_record(work.log, RunLog).curve]
                differences = [abs(a / b - 1) for a, b in zip(curves[source], curves["online"], strict=True)]
                largest[source] = max(largest[source], *differences)
            print(f"{method:34} " + "  ".join(f"{key} {value:.0f} s" for key, value in seconds.items()), flush=True)
    for source in SOURCES:
        ratio = seconds["online"] / seconds[source]
        print(f"{source:15} {seconds[source]:6.0f} s in all, online x{ratio:.2f}, losses within {largest[source]:.1e}")
    save_results(args.json, pair=args.pair, images=args.images, epochs=args.epochs, seconds=seconds, differ=largest)


if __name__ == "__main__":
    main()
