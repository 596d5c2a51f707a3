"""Benchmarks that need a GPU run from start to end on a CPU, at their smallest."""

import json
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.slow
@pytest.mark.long
def test_the_gpu_benchmark_runs(tmp_path):
    command = [
        sys.executable,
        ROOT / "benchmarks/gpu.py",
        "--device",
        "cpu",
        "--smoke",
        "--json",
        tmp_path / "gpu.json",
    ]
    subprocess.run(command, check=True, timeout=600)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["digits"] == dict.fromkeys(
        ["resnet20_to_resnet8 kd", "resnet20_to_resnet8 kd_tlcutmix_pick"], 0.0
    )  # the same device
    assert {(one["method"], one["source"], one["runs"]) for one in results["cases"]} >= {
        ("kd", "online", 1), ("kd", "replay", 1), ("kd_tlcutmix_pick", "online", 2),
    }  # fmt: skip
    assert results["cost"]["hours"]["paper"] > results["cost"]["hours"]["table3"] > 0
