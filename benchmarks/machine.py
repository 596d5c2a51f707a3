"""What the benchmarks' figures were measured on, kept with them."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, str | int]:
    """This machine's name, its processor and cores, and torch's version."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    models = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor() or platform.machine()
    return {"name": platform.node(), "cpu": cpu, "cores": os.cpu_count() or 1, "torch": torch.__version__}


def told() -> str:
    """The same in a line."""
    return ", ".join(f"{key} {value}" for key, value in machine().items())


def keep(file: Path | None, **figures: Any) -> None:
    """Write figures and machine to `file` as JSON, if it was asked for."""
    if file is not None:
        file.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
