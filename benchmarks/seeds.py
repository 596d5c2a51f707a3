"""How much faster the seeds of a method are trained side by side than one after another.

    python benchmarks/seeds.py [--method kd_tlcutmix_pick] [--seeds 3] [--epochs 8] [--rounds 3] [--json FILE]

Side by side is what `dvc repro` does: each seed in a process of its own with one thread. Against it stand the same
seeds one after another, with one thread each and with a thread per core. All three fork from the same warm server,
do the same work on the demo's digits (resnet20 -> resnet8, the teacher with fresh weights) and take turns, in another
order every round; a start of a process counts. The ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

from machine import keep, told

from kdflow import config, data
from kdflow.config import Experiment
from kdflow.launch.parallel_runs import run_parallel
from kdflow.models import create_model, save_weights
from kdflow.training import record
from kdflow.training.job import Job

ROOT = Path(__file__).parents[1]
CORES = os.cpu_count() or 1
# Threads of a run, and how many run at a time (None: as many as there are, up to two per core).
WAYS = {"side by side": (1, None), "in turn, 1 thread": (1, 1), f"in turn, {CORES} threads": (CORES, 1)}


def prepare(experiment: Experiment, folder: Path) -> None:
    """The digits, and a teacher with fresh weights: speed does not depend on what it says."""
    data.prepare(experiment.params.dataset, experiment.dataset.data, None, folder, folder / "dataset.h5")
    run = experiment.teacher_run()
    model = create_model(run.architecture, run.model, run.classes, run.image_size)
    save_weights(model, folder / "teacher.safetensors")


def jobs(experiment: Experiment, folder: Path, method: str, threads: int) -> list[Job]:
    """A job per seed."""
    found = []
    for seed in experiment.params.seeds:
        run = experiment.student_run(method, seed)
        found.append(
            Job(
                name=f"seed {seed}",
                run=run,
                budget=record.make_budget(run, experiment.dataset),
                dataset=folder / "dataset.h5",
                teacher=folder / "teacher.safetensors" if run.teacher is not None else None,
                views_store=None,
                weights=folder / f"seed{seed}.safetensors",
                log=folder / f"seed{seed}.json",
                work_dir=folder,
                compute=experiment.params.compute.model_copy(update={"device": "cpu", "threads": threads}),
            )
        )
    return found


def seconds(work: list[Job], at_most: int | None) -> float:
    """How long the jobs take together."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # their progress
        run_parallel("", work, at_most)
    return time.perf_counter() - start


def measure(experiment: Experiment, method: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of every way, round by round."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(experiment, folder)
        seconds(jobs(experiment, folder, method, 1)[:1], 1)  # starts the server
        for i in range(rounds):
            for k in range(len(WAYS)):
                way = list(WAYS)[(i + k) % len(WAYS)]
                threads, at_most = WAYS[way]
                found[way].append(seconds(jobs(experiment, folder, method, threads), at_most))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="kd_tlcutmix_pick")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="keep the figures here")
    asked = parser.parse_args()
    loaded = config.load(ROOT)
    changed = {
        "dataset": "digits",
        "train_images": None,
        "teacher": "resnet20",
        "student": "resnet8",
        "seeds": tuple(range(asked.seeds)),
        "epochs": asked.epochs,
    }
    experiment = loaded.model_copy(update={"params": loaded.params.model_copy(update=changed)})
    print(f"{asked.method}, {asked.seeds} seeds, {asked.epochs} epochs of {experiment.train_images} digits; {told()}")
    times = measure(experiment, asked.method, asked.rounds)
    images = asked.seeds * asked.epochs * experiment.train_images
    together, *_ = times.values()
    figures = {}
    for way, took in times.items():
        ratio = statistics.median(a / b for a, b in zip(took, together, strict=True))
        middle = statistics.median(took)
        figures[way] = {"seconds": middle, "images_per_second": images / middle, "ratio": ratio, "rounds": took}
        print(f"{way:20} {middle:6.1f} s  {images / middle:6.0f} images/s together  ratio {ratio:.2f}")
    keep(asked.json, method=asked.method, seeds=asked.seeds, epochs=asked.epochs, ways=figures)


if __name__ == "__main__":
    main()
