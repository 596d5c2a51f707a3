"""Measure commands of kdflow and DVC on a paper with many cells.

    python benchmarks/dag.py [--cells 400 2000] [--rounds 3] [--json FILE]

A copy of the project gets a table with that many cells on the demo's dataset. `dvc repro` runs one cell. The others get
copies of its records, so that there is something to read for each. The output has the median of the rounds for each
command, and a profile of `kdflow cells --status`.
"""

from __future__ import annotations

import argparse
import os
import pstats
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe_machine, save_results
from ruamel.yaml import YAML

from kdflow.paper import Paper, cells, load_paper
from kdflow.paper.dvc_yaml import write_generated
from kdflow.training import record
from kdflow.training.record import RunRecord

ROOT = Path(__file__).parents[1]
KDFLOW = (sys.executable, "-m", "kdflow.cli")


def environment(root: Path) -> dict[str, str]:
    """Return the environment of commands in the copy, which use the code of the copy."""
    who = {f"GIT_{role}_{key}": "bench@localhost" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, **who, "PATH": path, "PYTHONPATH": str(root), "DVC_NO_ANALYTICS": "1"}


def seconds(root: Path, *command: str) -> float:
    """Return the time that a command in the copy takes, in seconds."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return time.perf_counter() - start


def project(root: Path, count: int) -> Paper:
    """Copy the project to `root` and give its paper `count` cells."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    rows = [{"label": f"kd {i}", "method": "kd", "epochs": i} for i in range(1, count + 1)]
    pairs = ["resnet20_to_resnet8"]
    table = {"kind": "accuracy_table", "caption": "Many", "dataset": "digits", "pairs": pairs, "rows": rows}
    YAML().dump({"table1": table}, root / "paper/tables.yaml")
    shutil.copy(root / "paper/miniature/params.yaml", root / "paper/params.yaml")
    paper = load_paper(root=root)
    write_generated(paper)
    seconds(root, "git", "init", "-q")
    seconds(root, "git", "add", "-A")
    seconds(root, "git", "commit", "-qm", "copy")
    return paper


def copy_records(paper: Paper, source: str) -> None:
    """Give every cell the records of the cell `source`, with the settings of the cell."""
    experiment = paper.experiment(paper.cells[source])
    file = cells.cell_folder(paper, source) / f"seed{experiment.params.seeds[0]}.json"
    template = record.read_record(file, RunRecord)
    for name, cell in paper.cells.items():
        if name == source:
            continue
        experiment, folder, records = paper.experiment(cell), cells.cell_folder(paper, name), list[RunRecord]()
        for seed in experiment.params.seeds:
            run = experiment.student_run(cell.method, seed)
            records.append(template.model_copy(update={"settings": run, "settings_sha256": run.sha256}))
            record.write_record(folder / f"seed{seed}.json", records[-1])
        record.write_record(folder / cells.CELL_RECORD, cells.make_cell_record(paper, name, records))


def measure(count: int, rounds: int) -> dict[str, float]:
    """Return the time of each command in seconds, the median of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paper = project(root, count)
        first = next(iter(paper.cells))
        dvc = ("dvc", "--cd", "paper")
        seconds(root, *dvc, "repro", f"cell@{first}")
        copy_records(paper, first)
        commands = {
            "kdflow plan --check": (*KDFLOW, "plan", "--check"),
            "kdflow cells --status": (*KDFLOW, "cells", "--status"),
            "dvc status, one cell": (*dvc, "status", f"cell@{first}"),
            "dvc repro, one cell up to date": (*dvc, "repro", f"cell@{first}"),
        }
        medians = {
            name: statistics.median(seconds(root, *command) for _ in range(rounds))
            for name, command in commands.items()
        }
        for name, value in medians.items():
            print(f"{count:5} cells  {name:32} {value:6.2f} s", flush=True)
        seconds(
            root, sys.executable, "-m", "cProfile", "-o", f"{root}/profile", "-m", "kdflow.cli", "cells", "--status"
        )
        pstats.Stats(f"{root}/profile").sort_stats("cumulative").print_stats("kdflow|pydantic|ruamel", 12)
    return medians


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", type=int, default=[400, 2000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    print(describe_machine())
    save_results(args.json, seconds={count: measure(count, args.rounds) for count in args.cells})


if __name__ == "__main__":
    main()
