"""Prefect's server for a sweep from a terminal: the one that is set, or one of our own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from kdflow.core.errors import UserError, one_line
from kdflow.sweep.processes import NO_TELEMETRY, PID_DIR

START_TIMEOUT = 120.0  # seconds that a server has to start
LOG = PID_DIR / "server.log"


@asynccontextmanager
async def prefect_server() -> AsyncIterator[None]:
    """Have a server while the block runs. One of our own is there until this process has ended.

    Prefect's client would start one, too: but that hears Ctrl-C with us, and is gone before it is told what was
    interrupted, for which Prefect then tries a minute; and kill -9 leaves it.

    Raises:
        UserError: the server that PREFECT_API_URL names does not answer, or ours has not started.
    """
    url: str | None = PREFECT_API_URL.value()
    if url is not None:
        if error := await _failure():
            raise UserError(f"PREFECT_API_URL: {url}: no server answers ({error}); start it, or leave that unset")
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    keeper = _start([sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port])
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        until = time.monotonic() + START_TIMEOUT
        while await _failure():
            if keeper.poll() is not None or time.monotonic() > until:
                raise UserError(f"Prefect's server has not started; {LOG} has what it says")
            await asyncio.sleep(0.2)
        yield


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "kdflow.core.parent", str(os.getpid()), *command],
            cwd=Path(),
            env={**os.environ, **NO_TELEMETRY},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


async def _failure() -> str | None:
    """Why the server that is set does not answer."""
    async with get_client() as client:
        error = await client.api_healthcheck()
    return None if error is None or isinstance(error, httpx.HTTPStatusError) else one_line(error) or repr(error)
