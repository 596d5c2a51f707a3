"""Ends a process when its parent has ended, in whatever way: kill -9 lets a parent send no signal.

- A stage ends with DVC: `run_script` calls `end_with_parent`. In dvc.yaml its command begins with `exec`, so that no
  shell stands between the two.
- The runs of a stage end with the stage, torchrun's processes with torchrun: they call `end_with_parent` too.
- Prefect's server is a program of another project. `python -m kdflow.core.parent PID COMMAND...` runs it, for a sweep
  from a terminal and for `make serve`.

Two kinds of processes end in another way. torch itself ends the workers of a DataLoader. Stages of a flow whose process
is lost are ended by the next flow (`kdflow.sweep.processes`): where only Prefect's worker has died, the process of the
flow still runs, and the lost flow run must be reported to Prefect in any case.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

POLL_SECONDS = 1.0  # between two looks at the parent
KILL_GRACE = 10.0  # seconds between SIGTERM and the end by force


def end_with_parent() -> None:
    """Watch the parent in a thread: when it has ended, send SIGTERM to this process, after a while end it by force."""
    threading.Thread(target=_end_after_parent, args=(os.getppid(),), daemon=True).start()


def _end_after_parent(parent: int) -> None:
    started_by = multiprocessing.parent_process()
    if started_by is not None:
        started_by.join()  # the parent that the system knows may be multiprocessing's fork server, which lives on
    else:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(KILL_GRACE)
    os._exit(1)


def run_until_parent_ends(parent: int, command: Sequence[str]) -> int:
    """Run a command and return its exit code; when the process `parent` has ended, end the command.

    The number of the parent is an argument because it may have ended before this process could look for it.
    """
    with suppress(PermissionError):  # it leads a group already
        os.setsid()  # Ctrl-C in a terminal is for the parent, which may need the command until its end
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(POLL_SECONDS)
        if os.getppid() != parent:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                return child.wait(KILL_GRACE)
            os.killpg(0, signal.SIGKILL)  # the group: the command, what it has started, and this process


if __name__ == "__main__":
    sys.exit(run_until_parent_ends(int(sys.argv[1]), sys.argv[2:]))
