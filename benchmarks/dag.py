"""How long the graph of many cells takes to be asked: kdflow's own commands, and DVC's, at 400 and 2,000 cells.

    python benchmarks/dag.py [--cells 400 2000] [--rounds 3] [--json FILE]

A copy of the project gets a table of so many cells on the demo's digits. One cell is really made by `dvc repro`, the
others get records like its own, so that there is something to read for each. Printed are medians of the rounds, and
where `kdflow cells --status` spends its time.
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

from machine import keep, told
from ruamel.yaml import YAML

from kdflow.core import files
from kdflow.paper import Paper, cells, load_paper
from kdflow.paper.dvc_yaml import write_generated
from kdflow.training import record
from kdflow.training.record import RunRecord

ROOT = Path(__file__).parents[1]
KDFLOW = (sys.executable, "-m", "kdflow.cli")


def environment(root: Path) -> dict[str, str]:
    """Of commands in the copy, with its own code."""
    who = {f"GIT_{role}_{key}": "bench@localhost" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, **who, "PATH": path, "PYTHONPATH": str(root), "DVC_NO_ANALYTICS": "1"}


def seconds(root: Path, *command: str) -> float:
    """Of a command in the copy; it must succeed."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return time.perf_counter() - start


def project(root: Path, count: int) -> Paper:
    """A copy of the project whose paper has `count` cells."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    rows = [{"label": f"kd {i}", "method": "kd", "epochs": i} for i in range(1, count + 1)]
    pairs = ["resnet20_to_resnet8"]
    table = {"kind": "results", "caption": "Many", "dataset": "digits", "pairs": pairs, "rows": rows}
    YAML().dump({"table1": table}, root / "paper/tables.yaml")
    shutil.copy(root / "paper/miniature/params.yaml", root / "paper/params.yaml")
    paper = load_paper(root=root)
    write_generated(paper)
    seconds(root, "git", "init", "-q")
    seconds(root, "git", "add", "-A")
    seconds(root, "git", "commit", "-qm", "copy")
    return paper


def fill(paper: Paper, made: str) -> None:
    """Give every cell records like those of the cell that was made."""
    experiment = paper.experiment(paper.cells[made])
    some = record.read_record(cells.cell_folder(paper, made) / f"seed{experiment.params.seeds[0]}.json", RunRecord)
    for name, cell in paper.cells.items():
        if name == made:
            continue
        experiment, found = paper.experiment(cell), list[RunRecord]()
        for seed in experiment.params.seeds:
            run = experiment.student_run(cell.method, seed)
            found.append(some.model_copy(update={"settings": run, "settings_sha256": run.sha256}))
            files.write_text(cells.cell_folder(paper, name) / f"seed{seed}.json", found[-1].model_dump_json())
        record.write_record(cells.cell_folder(paper, name) / cells.NOTE, cells.make_cell_record(paper, name, found))


def measure(count: int, rounds: int) -> dict[str, float]:
    """Seconds of each command, the median of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paper = project(root, count)
        made = next(iter(paper.cells))
        target = f"paper/dvc.yaml:cell@{made}"
        seconds(root, "dvc", "repro", target)
        fill(paper, made)
        commands = {
            "kdflow plan --check": (*KDFLOW, "plan", "--check"),
            "kdflow cells --status": (*KDFLOW, "cells", "--status"),
            "dvc status, one cell": ("dvc", "status", target),
            "dvc repro, one cell up to date": ("dvc", "repro", target),
        }
        found = {
            name: statistics.median(seconds(root, *command) for _ in range(rounds))
            for name, command in commands.items()
        }
        for name, value in found.items():
            print(f"{count:5} cells  {name:32} {value:6.2f} s", flush=True)
        seconds(
            root, sys.executable, "-m", "cProfile", "-o", f"{root}/profile", "-m", "kdflow.cli", "cells", "--status"
        )
        pstats.Stats(f"{root}/profile").sort_stats("cumulative").print_stats("kdflow|pydantic|ruamel", 12)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", type=int, default=[400, 2000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="keep the figures here")
    asked = parser.parse_args()
    print(told())
    keep(asked.json, seconds={count: measure(count, asked.rounds) for count in asked.cells})


if __name__ == "__main__":
    main()
