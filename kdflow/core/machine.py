"""Limits of this process: usable CPUs, shared memory, and a folder for sockets."""

from __future__ import annotations

import os
import shutil
import tempfile
from math import ceil
from multiprocessing import util
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROCESS_CGROUPS = Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")

# The path of a Unix socket has at most 107 bytes on Linux, 103 on macOS; multiprocessing appends 30 to the folder.
LONGEST_SOCKET_FOLDER = 70


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use: its affinity, and the CPU quotas of its cgroups."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [ceil(quota) for quota in _cpu_quotas()]
    return max(1, min([cpus, *quotas]))


def default_loader_workers() -> int:
    """Return the default number of processes that read image files: one per usable CPU, at most 8."""
    return min(8, usable_cpus())


def _cpu_quotas() -> list[float]:
    """Return the quotas in CPUs of the cgroups of this process and of those above them, versions 1 and 2."""
    try:
        lines = PROCESS_CGROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return []
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = CGROUPS / controllers if controllers else CGROUPS
        group = top / path.lstrip("/")
        # In a container, the path may be that of the host, and `top` is the container's group.
        for folder in [folder for folder in (group, *group.parents) if folder.is_relative_to(top)]:
            quotas += _quota(folder)
    return quotas


def _quota(folder: Path) -> list[float]:
    try:
        quota, period = (folder / "cpu.max").read_text().split()  # version 2: "max 100000" is no limit
    except (OSError, ValueError):
        try:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return []
    return [int(quota) / int(period)] if quota.isdigit() and int(period) > 0 else []


def total_memory() -> int:
    """Return the bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_shared_memory() -> int | None:
    """Return the free bytes of /dev/shm; None where there is no such folder."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def use_short_socket_folder() -> None:
    """Let multiprocessing make its sockets in a short private folder if the path of TMPDIR is too long for a socket.

    Child processes inherit the folder; multiprocessing removes it when this process ends.
    """
    default = tempfile.gettempdir()
    if len(os.fsencode(default)) <= LONGEST_SOCKET_FOLDER:
        return
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.access(folder, os.W_OK | os.X_OK):
            tempfile.tempdir = folder
            try:
                util.get_temp_dir()  # chosen once per process
            finally:
                tempfile.tempdir = default
            return
