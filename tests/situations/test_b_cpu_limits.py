"""CPU affinity and cgroup quotas: defaults follow the limits of the process, not the CPUs of the machine."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

from kdflow import config
from kdflow.core import machine
from kdflow.launch import parallel_runs


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """A function that sets up cgroups: the lines of /proc/self/cgroup, and files of /sys/fs/cgroup."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "PROCESS_CGROUPS", tmp_path / "self")

    def make(lines, files):
        (tmp_path / "self").write_text(lines)
        for name, content in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)

    return make


@pytest.mark.parametrize(
    ("lines", "files", "cpus"),
    [
        ("", {}, 64),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # rounded up
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),  # of the group above
        ("0::/host/docker/1\n", {"cpu.max": "400000 100000\n"}, 4),  # a container sees its group as the top
        ("0::/../..\n", {"cpu.max": "400000 100000\n"}, 4),
        ("4:cpu,x:/", {"cpu,x/cpu.cfs_quota_us": "500000", "cpu,x/cpu.cfs_period_us": "100000"}, 5),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("4:cpuset:/\n", {"cpuset/cpu.max": "100000 100000"}, 64),
    ],
)  # fmt: skip
def test_the_smallest_quota_limits_the_cpus(cgroups, lines, files, cpus):
    cgroups(lines, files)
    assert machine.usable_cpus() == cpus


def test_workers_and_parallel_runs_follow_the_limit(cgroups, monkeypatch):
    cgroups("0::/\n", {"cpu.max": "300000 100000\n"})
    compute = config.load(ROOT).params.compute.model_copy(update={"loader_workers": None})
    assert compute.resolved_workers == 3
    assert parallel_runs.default_parallel_runs() == 6


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_affinity_limits_the_cpus():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from kdflow.core.machine import usable_cpus; print(usable_cpus())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
