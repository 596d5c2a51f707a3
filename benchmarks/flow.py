"""What a flow costs over plain `dvc repro`: a graph of cells that do nothing, run by each, on a server of its own.

    python benchmarks/flow.py [--cells 6 60] [--rounds 3] [--json FILE]

`dvc repro` runs all cells in one process, one after the other. A flow starts `dvc repro -s` for each, two at a time, so
that they can be watched, tried again and cancelled one by one. Printed are medians of alternating rounds, and the
difference per cell. A cell of the demo takes some ten seconds, one of the paper hours.
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

from machine import keep, told
from ruamel.yaml import YAML

from kdflow.sweep.processes import NO_TELEMETRY

DVC = (sys.executable, "-m", "dvc")


def project(root: Path, count: int) -> None:
    """A graph of `count` cells, one upstream of all, in a git repository of its own."""
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


def again(root: Path) -> None:
    """Forget that anything has run."""
    for name in ("dvc.lock", ".dvc/cache"):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for out in [root / "data", *root.glob("c[0-9]*")]:
        out.unlink(missing_ok=True)


async def run_here(at_once: int) -> None:
    """The flow: what kdflow's flows do with a graph."""
    from prefect import flow

    from kdflow.sweep import dvc_graph
    from kdflow.sweep.flows import repro
    from kdflow.sweep.tasks import StageTimeouts, registered_flow_run, run_local

    @flow
    async def cells() -> None:
        async with registered_flow_run():
            await run_local(await asyncio.to_thread(dvc_graph.stale, []), repro(), at_once, StageTimeouts())

    await cells()


@contextlib.contextmanager
def server(home: Path) -> Iterator[dict[str, str]]:
    """A Prefect server on loopback; yields the environment of those who talk to it."""
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
                raise SystemExit("the server has not started")
            time.sleep(0.2)
        yield environment
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def seconds(root: Path, environment: dict[str, str], *command: str) -> float:
    """Of a command in `root`; it must succeed."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return time.perf_counter() - start


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[6, 60])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run-here", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run_here:
        asyncio.run(run_here(given.run_here))
        return
    found = {}
    ways = {"dvc repro": (*DVC, "repro")}
    here = (sys.executable, str(Path(__file__).resolve()), "--run-here")
    ways |= {f"flow, {n} at once": (*here, str(n)) for n in (1, 2)}
    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "prefect") as environment:
        for count in given.cells:
            root = Path(folder) / str(count)
            root.mkdir()
            project(root, count)
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(given.rounds):
                for way, command in ways.items():
                    again(root)
                    times[way].append(seconds(root, environment, *command))
            found[str(count)] = {way: statistics.median(values) for way, values in times.items()}
            plain = found[str(count)]["dvc repro"]
            for way, value in found[str(count)].items():
                more = "" if way == "dvc repro" else f"  {(value - plain) / count:+.2f} s a cell"
                print(f"{count:4} cells  {way:16} {value:7.1f} s{more}")
    print(told())
    keep(given.json, seconds=found)


if __name__ == "__main__":
    main()
