"""Process groups that were started here: known again, ended whole, and nobody else's."""

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
from kdflow.sweep.processes import FlowRunProcess, Group, Process, process, read_pid_files, run_in_group

# A parent that ignores what asks it to end, and a child of its own group that does not.
STUBBORN = (
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "subprocess.Popen(['sleep', '100']); print('ready', flush=True); time.sleep(100)"
)
COMMAND = [sys.executable, "-c", STUBBORN]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(processes, "KILL_GRACE", 0.5)


def gone(pid: int) -> bool:
    until = time.monotonic() + 5
    while process(pid) is not None and time.monotonic() < until:
        time.sleep(0.02)
    return process(pid) is None


def test_a_process_is_itself_only():
    own = process(os.getpid())
    assert own.alive and not own.model_copy(update={"began": own.began - 3}).alive
    assert own.model_copy(update={"began": own.began + 1}).alive, "the time of boot is read with an error"
    child = subprocess.Popen(["sleep", "100"])
    found = process(child.pid)
    child.kill()
    assert gone(child.pid) and not found.alive, "a zombie does not live"
    child.wait()
    assert not found.alive


def test_the_group_ends_with_the_block_and_its_note_with_it(tmp_path):
    async def run():
        async with run_in_group(
            [sys.executable, "-c", STUBBORN], tmp_path, "a stage", "r1", tmp_path, dict(os.environ)
        ) as child:
            assert await child.stdout.readline() == b"ready\n"
            (group,) = read_pid_files(tmp_path, Group).values()
            assert (group.what, group.run, group.leader.pid) == ("a stage", "r1", child.pid)
            family = [child.pid, *descendants(child.pid)]
            assert sorted(one.pid for one in group.members) == sorted(family) and len(family) == 2
            return family

    family = asyncio.run(run())
    assert all(gone(pid) for pid in family) and read_pid_files(tmp_path, Group) == {}


def test_a_cancelled_task_takes_its_group_along(tmp_path):
    async def run():
        seen = []

        async def stage():
            async with run_in_group(
                [sys.executable, "-c", STUBBORN], tmp_path, "s", "r", tmp_path, dict(os.environ)
            ) as child:
                await child.stdout.readline()
                seen.extend([child.pid, *descendants(child.pid)])
                await child.wait()

        task = asyncio.create_task(stage())
        while not seen:
            await asyncio.sleep(0.02)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return seen

    family = asyncio.run(run())
    assert len(family) == 2 and all(gone(pid) for pid in family)


def test_after_a_timeout_the_note_stays_until_the_group_is_gone(tmp_path):
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


def test_what_a_killed_leader_leaves_is_found_and_ended():
    leader = subprocess.Popen(COMMAND, start_new_session=True, stdout=subprocess.PIPE)
    leader.stdout.readline()
    group = Group(leader=process(leader.pid), what="s", run="r")
    (child,) = descendants(leader.pid)
    os.kill(leader.pid, signal.SIGKILL)
    leader.wait()
    assert [one.pid for one in group.members] == [child]
    assert group.end() and gone(child) and not group.end()


def test_a_number_that_was_given_again_is_left_alone():
    other = subprocess.Popen(["sleep", "100"], start_new_session=True)
    found = process(other.pid)
    for began in (found.began - 5, found.began + 5):  # ours had this number before; or its note is from the future
        assert Group(leader=Process(pid=other.pid, began=began), what="s", run="r").members == []
        assert not Group(leader=Process(pid=other.pid, began=began), what="s", run="r").end()
    assert found.alive
    assert found.end() and gone(other.pid)
    other.wait()


def test_a_run_is_lost_without_its_process_or_its_worker(tmp_path):
    own, dead = process(os.getpid()), Process(pid=os.getpid(), began=1.0)
    for runner, worker, lost in (
        (own, None, False),
        (own, own, False),
        (own, dead, True),
        (dead, own, True),
        (dead, None, True),
    ):
        run = FlowRunProcess(run="r", flow="sweep", process=runner, worker=worker)
        assert run.lost is lost
        with processes.pid_file(tmp_path, run, run.run):
            assert list(read_pid_files(tmp_path, FlowRunProcess).values()) == [run]
    assert read_pid_files(tmp_path, FlowRunProcess) == {}
    (tmp_path / "run/odd.json").write_text("{}")
    assert read_pid_files(tmp_path, FlowRunProcess) == {}, "what is none of ours is left alone"
