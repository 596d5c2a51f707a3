"""Measure the overhead of a flow over `dvc repro`, on a pipeline of cells that do nothing.

    python benchmarks/flow.py [--cells 6 60] [--rounds 3] [--json FILE]

`dvc repro` runs all cells in one process, one after the other. A flow starts `dvc repro -s` for each cell, so they
can run in parallel and be retried and cancelled one by one. The output has the medians of alternating rounds and the
difference per cell. A cell of the demo takes about ten seconds, a cell of the paper hours.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from machine import describe_machine, save_results
from ruamel.yaml import YAML

from kdflow.sweep.processes import NO_TELEMETRY

DVC = (sys.executable, "-m", "dvc")


def project(root: Path, count: int) -> None:
    """Create a pipeline of `count` cells that depend on one stage, in a new git repository."""
    stages = {
        "prepare": {"cmd": "echo data > data", "outs": ["data"]},
        "cell": {
            "foreach": [f"c{i}" for i in range(count)],
            "do": {"cmd": "echo ${item} > ${item}", "deps": ["data"], "outs": ["${item}"]},
        },
    }
    YAML().dump({"stages": stages}, root / "dvc.yaml")
    for command in (("git", "init", "-q"), (*DVC, "init", "-q")):
        subprocess.run(command, cwd=root, check=True, env={**os.environ, **NO_TELEMETRY})


def reset(root: Path) -> None:
    """Remove all outputs and DVC's record of them."""
    for name in ("dvc.lock", ".dvc/cache"):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for out in [root / "data", *root.glob("c[0-9]*")]:
        out.unlink(missing_ok=True)


async def run_flow(max_parallel: int) -> None:
    """Run the stale stages as kdflow's flows do."""
    from prefect import flow

    from kdflow.sweep import dvc_graph
    from kdflow.sweep.flows import repro
    from kdflow.sweep.recovery import registered_flow_run
    from kdflow.sweep.tasks import StageTimeouts, run_local

    @flow
    async def cells() -> None:
        async with registered_flow_run():
            stages = await asyncio.to_thread(dvc_graph.stale, Path())
            await run_local(stages, repro(Path()), max_parallel, StageTimeouts(), project=Path())

    await cells()


@contextlib.contextmanager
def server(home: Path) -> Iterator[dict[str, str]]:
    """Run a Prefect server on the loopback interface; yields the environment of its clients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, **NO_TELEMETRY, "PREFECT_HOME": str(home), "PREFECT_API_URL": f"{address}/api"}
    environment["PREFECT_LOGGING_LEVEL"] = "WARNING"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api/health"):
                break
            if process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.2)
        yield environment
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def seconds(root: Path, environment: dict[str, str], *command: str) -> float:
    """Return the time that a command in `root` takes, in seconds."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return time.perf_counter() - start


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[6, 60])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run-flow", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run_flow:
        asyncio.run(run_flow(args.run_flow))
        return
    medians = {}
    run_flow_command = (sys.executable, str(Path(__file__).resolve()), "--run-flow")
    modes = {"dvc repro": (*DVC, "repro")}
    modes |= {f"flow, {n} in parallel": (*run_flow_command, str(n)) for n in (1, 2)}
    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "prefect") as environment:
        for count in args.cells:
            root = Path(folder) / str(count)
            root.mkdir()
            project(root, count)
            times: dict[str, list[float]] = {mode: [] for mode in modes}
            for _ in range(args.rounds):
                for mode, command in modes.items():
                    reset(root)
                    times[mode].append(seconds(root, environment, *command))
            medians[str(count)] = {mode: statistics.median(values) for mode, values in times.items()}
            without_flow = medians[str(count)]["dvc repro"]
            for mode, value in medians[str(count)].items():
                overhead = "" if mode == "dvc repro" else f"  {(value - without_flow) / count:+.2f} s per cell"
                print(f"{count:4} cells  {mode:19} {value:7.1f} s{overhead}")
    print(describe_machine())
    save_results(args.json, seconds=medians)


if __name__ == "__main__":
    main()
