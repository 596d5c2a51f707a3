"""The machine that the benchmarks run on, printed and saved with their results."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, str | int]:
    """Return the machine's name, its CPU, its number of cores, and torch's version."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    models = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor() or platform.machine()
    return {"name": platform.node(), "cpu": cpu, "cores": os.cpu_count() or 1, "torch": torch.__version__}


def describe_machine() -> str:
    """Return the machine in one line."""
    return ", ".join(f"{key} {value}" for key, value in machine().items())


def save_results(file: Path | None, **results: Any) -> None:
    """Write results and machine to `file` as JSON, if there is one."""
    if file is not None:
        file.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
