"""The Prefect server of a sweep from a terminal: the one that PREFECT_API_URL names, or a temporary one."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from kdflow.core.errors import UserError, one_line
from kdflow.sweep.processes import NO_TELEMETRY, PID_DIR

START_TIMEOUT = 120.0  # seconds until a server that starts must answer
LOG = PID_DIR / "server.log"


@asynccontextmanager
async def prefect_server() -> AsyncIterator[None]:
    """Provide a server while the block runs. A temporary one runs until this process has ended.

    Prefect's client would also start a temporary server. That one receives the Ctrl-C of the terminal at the same time
    as the flow and ends before the flow has reported its end, for which Prefect then retries for a minute. After
    kill -9 of the flow it continues.

    Raises:
        UserError: the server that PREFECT_API_URL names does not answer, or the temporary one does not start.
    """
    url: str | None = PREFECT_API_URL.value()
    if url is not None:
        if reason := await _connection_error():
            raise UserError(f"PREFECT_API_URL: {url}: no server answers ({reason}); start it, or unset PREFECT_API_URL")
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = _start([sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port])
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        deadline = time.monotonic() + START_TIMEOUT
        while await _connection_error():
            if server.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"the Prefect server did not start; see {LOG}")
            await asyncio.sleep(0.2)
        yield


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a command in a session that Ctrl-C does not reach; it ends with this process."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "kdflow.core.parent", str(os.getpid()), *command],
            env={**os.environ, **NO_TELEMETRY},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


async def _connection_error() -> str | None:
    """Return why the server does not answer, or None if it does."""
    async with get_client() as client:
        error = await client.api_healthcheck()
    return None if error is None or isinstance(error, httpx.HTTPStatusError) else one_line(error) or repr(error)
