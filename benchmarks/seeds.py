"""Benchmark of parallel runs: the seeds of a method trained in parallel, against one after another.

    python benchmarks/seeds.py [--method kd_tlcutmix_pick] [--seeds 3] [--epochs 8] [--rounds 3] [--json FILE]

`dvc repro` trains each seed in a separate process with one thread. It is compared with the same seeds one after
another, with one thread each and with a thread per core. All three fork from the same warm server, do the same work on
the demo's digits (resnet20 -> resnet8, the teacher with random weights) and take turns, in another order every round;
the start of a process is included. The ratio is the median of the rounds' ratios.
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

from machine import describe_machine, save_results

from kdflow import config, data
from kdflow.config import Experiment
from kdflow.launch.parallel_runs import run_parallel
from kdflow.models import create_model, save_weights
from kdflow.training import record
from kdflow.training.job import Job

ROOT = Path(__file__).parents[1]
CORES = os.cpu_count() or 1
# Threads of a run, and the number of parallel runs (None: all of them, up to two per core).
MODES = {"parallel": (1, None), "in turn, 1 thread": (1, 1), f"in turn, {CORES} threads": (CORES, 1)}


def prepare(experiment: Experiment, folder: Path) -> None:
    """Write the digits, and a teacher with random weights, which do not change the speed."""
    data.prepare(experiment.params.dataset, experiment.dataset.data, None, folder, folder / "dataset.h5")
    run = experiment.teacher_run()
    model = create_model(run.architecture, run.model, run.classes, run.image_size)
    save_weights(model, folder / "teacher.safetensors")


def jobs(experiment: Experiment, folder: Path, method: str, threads: int) -> list[Job]:
    """Return a job for each seed."""
    made = []
    for seed in experiment.params.seeds:
        run = experiment.student_run(method, seed)
        made.append(
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
    return made


def seconds(work: list[Job], max_parallel: int | None) -> float:
    """Return the time of all jobs, in seconds."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # hides their progress
        run_parallel("", work, max_parallel)
    return time.perf_counter() - start


def measure(experiment: Experiment, method: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each mode in each round."""
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(experiment, folder)
        seconds(jobs(experiment, folder, method, 1)[:1], 1)  # starts the server
        for i in range(rounds):
            for k in range(len(MODES)):
                mode = list(MODES)[(i + k) % len(MODES)]
                threads, max_parallel = MODES[mode]
                times[mode].append(seconds(jobs(experiment, folder, method, threads), max_parallel))
    return times


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="kd_tlcutmix_pick")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    loaded = config.load(ROOT)
    changed = {
        "dataset": "digits",
        "train_images": None,
        "teacher": "resnet20",
        "student": "resnet8",
        "seeds": tuple(range(args.seeds)),
        "epochs": args.epochs,
    }
    experiment = loaded.model_copy(update={"params": loaded.params.model_copy(update=changed)})
    epochs = f"{args.epochs} epochs of {experiment.train_images} digits"
    print(f"{args.method}, {args.seeds} seeds, {epochs}; {describe_machine()}")
    times = measure(experiment, args.method, args.rounds)
    images = args.seeds * args.epochs * experiment.train_images
    parallel, *_ = times.values()
    figures = {}
    for mode, rounds in times.items():
        ratio = statistics.median(a / b for a, b in zip(rounds, parallel, strict=True))
        median = statistics.median(rounds)
        figures[mode] = {"seconds": median, "images_per_second": images / median, "ratio": ratio, "rounds": rounds}
        print(f"{mode:20} {median:6.1f} s  {images / median:6.0f} images/s in all  ratio {ratio:.2f}")
    save_results(args.json, method=args.method, seeds=args.seeds, epochs=args.epochs, modes=figures)


if __name__ == "__main__":
    main()
