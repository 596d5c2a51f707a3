"""Measure what a stage costs besides its work: CPU seconds of each stage of an experiment on a few images.

    python benchmarks/start.py [--rounds 5] [--kdflow FOLDER...] [--stages prepare teacher] [--json FILE]

The experiment has 20 training images of handwritten digits, ResNet8, one seed and one epoch, so nearly all time is that
of imports and processes. With several folders of kdflow's source, their rounds alternate, and the output has each one's
median of all processes of a stage together, and its ratio to the first folder's.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe_machine, save_results
from ruamel.yaml import YAML

from kdflow.sweep.processes import NO_TELEMETRY

STAGES = {"prepare": [], "teacher": [], "distill": ["kd"], "evaluate": ["kd"]}
CHANGES = {"train_images": 20, "teacher": "resnet8", "teacher_epochs": 1, "methods": ["kd"], "seeds": [0], "epochs": 1}
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl: processes whose parent has ended become this one's


def environment(source: Path) -> dict[str, str]:
    """Return an environment in which kdflow is imported from a folder."""
    return {**os.environ, **NO_TELEMETRY, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}


def project(root: Path, source: Path) -> None:
    """Create the experiment."""
    init = [sys.executable, "-m", "kdflow.cli", "init", str(root)]
    subprocess.run(init, check=True, env=environment(source), stdout=subprocess.DEVNULL)
    yaml, file = YAML(), root / "params.yaml"
    yaml.dump(yaml.load(file) | CHANGES, file)


def cpu_seconds() -> float:
    """Return the CPU seconds of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(root: Path, source: Path, stage: str) -> float:
    """Return the CPU seconds of a stage, of all its processes."""
    before = cpu_seconds()
    command = [sys.executable, "-m", f"stages.{stage}", *STAGES[stage]]
    subprocess.run(command, cwd=root, check=True, env=environment(source), stdout=subprocess.DEVNULL)
    while True:
        try:
            os.wait()  # the processes of the stage, for which it does not wait
        except ChildProcessError:
            return cpu_seconds() - before


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kdflow", type=Path, nargs="+", default=[Path(__file__).resolve().parents[1]])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=[*STAGES])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        parser.error("it needs Linux")
    print(describe_machine())
    seconds: dict[str, dict[str, list[float]]] = {stage: {str(at): [] for at in args.kdflow} for stage in args.stages}
    for _ in range(args.rounds):
        for source in args.kdflow:
            root = Path(tempfile.mkdtemp())
            try:
                project(root, source.resolve())
                for stage in args.stages:
                    seconds[stage][str(source)].append(measure(root, source.resolve(), stage))
            finally:
                shutil.rmtree(root)
    for stage, by_source in seconds.items():
        medians = {source: statistics.median(values) for source, values in by_source.items()}
        first = next(iter(medians.values()))
        for source, median in medians.items():
            print(f"{stage:<10} {median:6.2f} CPU s  {median / first:5.2f}  {source}", flush=True)
    save_results(args.json, seconds=seconds)


if __name__ == "__main__":
    main()
