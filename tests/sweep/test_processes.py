"""Process groups of commands: they are found again and ended as a whole, and no other process is."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import anyio
import pytest
from processes import descendants

from kdflow.sweep import processes
from kdflow.sweep.processes import FlowRunProcess, Group, Process, find_process, read_pid_files, run_in_group

# A process that ignores SIGTERM, and a child in its group that does not.
STUBBORN = (
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "subprocess.Popen(['sleep', '100']); print('ready', flush=True); time.sleep(100)"
)
COMMAND = [sys.executable, "-c", STUBBORN]


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(processes, "KILL_GRACE", 0.5)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while find_process(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    return find_process(pid) is None


def test_a_process_is_identified_by_its_number_and_start_time():
    this = find_process(os.getpid())
    assert this.alive and not this.model_copy(update={"start_time": this.start_time - 3}).alive
    assert this.model_copy(update={"start_time": this.start_time + 1}).alive, "start times are rounded"
    child = subprocess.Popen(["sleep", "100"])
    process = find_process(child.pid)
    child.kill()
    assert gone(child.pid) and not process.alive, "a zombie is not alive"
    child.wait()
    assert not process.alive


def test_a_group_and_its_file_end_with_the_block(tmp_path):
    async def run():
        async with run_in_group(COMMAND, tmp_path, "a stage", "r1", tmp_path, dict(os.environ)) as child:
            assert await child.stdout.readline() == b"ready\n"
            (group,) = read_pid_files(tmp_path, Group).values()
            assert (group.description, group.flow_run, group.leader.pid) == ("a stage", "r1", child.pid)
            pids = [child.pid, *descendants(child.pid)]
            assert sorted(process.pid for process in group.members) == sorted(pids) and len(pids) == 2
            return pids

    pids = asyncio.run(run())
    assert all(gone(pid) for pid in pids) and read_pid_files(tmp_path, Group) == {}


def test_a_cancelled_task_ends_its_group(tmp_path):
    async def run():
        pids = []

        async def stage():
            async with run_in_group(COMMAND, tmp_path, "s", "r", tmp_path, dict(os.environ)) as child:
                await child.stdout.readline()
                pids.extend([child.pid, *descendants(child.pid)])
                await child.wait()

        task = asyncio.create_task(stage())
        while not pids:
            await asyncio.sleep(0.02)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return pids

    pids = asyncio.run(run())
    assert len(pids) == 2 and all(gone(pid) for pid in pids)


def test_after_a_timeout_the_file_stays_until_the_group_has_ended(tmp_path):
    """Prefect's timeouts are anyio's, which cancel again at every turn of the loop."""

    async def run():
        with anyio.CancelScope() as scope:
            async with run_in_group(COMMAND, tmp_path, "s", "r", tmp_path, dict(os.environ)) as child:
                await child.stdout.readline()
                (group,) = read_pid_files(tmp_path, Group).values()
                scope.cancel()
                await child.wait()
        return group.members, read_pid_files(tmp_path, Group)  # before the loop ends, which waits for its threads

    assert asyncio.run(run()) == ([], {})


def test_the_group_of_a_killed_leader_is_found_and_ended():
    leader = subprocess.Popen(COMMAND, start_new_session=True, stdout=subprocess.PIPE)
    leader.stdout.readline()
    group = Group(leader=find_process(leader.pid), description="s", flow_run="r")
    (child,) = descendants(leader.pid)
    os.kill(leader.pid, signal.SIGKILL)
    leader.wait()
    assert [process.pid for process in group.members] == [child]
    assert group.end() and gone(child) and not group.end()


def test_another_group_with_the_same_number_is_left_alone():
    other = subprocess.Popen(["sleep", "100"], start_new_session=True)
    process = find_process(other.pid)
    for start_time in (process.start_time - 5, process.start_time + 5):
        leader = Process(pid=other.pid, start_time=start_time)
        assert Group(leader=leader, description="s", flow_run="r").members == []
        assert not Group(leader=leader, description="s", flow_run="r").end()
    assert process.alive
    assert process.end() and gone(other.pid)
    other.wait()


def test_a_flow_run_is_orphaned_without_its_process_or_its_worker(tmp_path):
    this, dead = find_process(os.getpid()), Process(pid=os.getpid(), start_time=1.0)
    for process, worker, orphaned in (
        (this, None, False),
        (this, this, False),
        (this, dead, True),
        (dead, this, True),
        (dead, None, True),
    ):
        run = FlowRunProcess(flow_run="r", flow="sweep", process=process, worker=worker)
        assert run.orphaned is orphaned
        with processes.pid_file(tmp_path, run, run.flow_run):
            assert list(read_pid_files(tmp_path, FlowRunProcess).values()) == [run]
    assert read_pid_files(tmp_path, FlowRunProcess) == {}
    (tmp_path / FlowRunProcess.FOLDER / "odd.json").write_text("{}")
    assert read_pid_files(tmp_path, FlowRunProcess) == {}, "a file of another version is skipped"
