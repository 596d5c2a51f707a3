"""A real Prefect server and real workers on the loopback interface, and a paper of six cells for them."""

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
from project import Project

TABLES = """
table1:
  kind: accuracy_table
  caption: Six methods
  dataset: digits
  pairs: [resnet20_to_resnet8]
  seeds: 1
  rows:
  - {label: Student, method: ce}
  - {label: KD, method: kd}
  - {label: TLmixup, method: kd_tlmixup}
  - {label: TLCutMix, method: kd_tlcutmix}
  - {label: TLCutMix+pick, method: kd_tlcutmix_pick}
  - {label: KD+CutMix, method: kd_cutmix}
"""
PARAMS = """
seeds: [0]
epoch_scale: 0.05
teacher_epoch_scale: 0.05
train_share: 1.0
eval_every:
data_folders: {digits: null}
teacher_weights: {digits-resnet20: null}
teacher_logits: online
precision: {fold_teacher: false, teacher: float32, student: float32, tf32: false, compile: none}
compute: {device: cpu, threads: 1, max_parallel_runs: 1, replay_gb: 1.0, loader_workers: 0, processes_per_run: 1}
"""
PAPER, TARGETS = "paper/six", ["table1"]

PREFECT = [sys.executable, "-m", "prefect"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """A server with a new database. It can be killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        home.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the server and its clients."""
        settings = {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": f"{self.address}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_CLI_PROMPT": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "DO_NOT_TRACK": "1",
            "DVC_NO_ANALYTICS": "1",
        }
        return {key: value for key, value in os.environ.items() if not key.startswith("PREFECT")} | settings

    def start(self) -> None:
        command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.home / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/api/health", timeout=2):
                return
            time.sleep(0.3)
        raise AssertionError((self.home / "server.log").read_text())

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        os.killpg(self.process.pid, signal_number)
        self.process.wait(60)

    def prefect(self, *arguments: str, cwd: Path, fails: bool = False, **more: str) -> str:
        """Run a command of Prefect; return its output."""
        environment = {**self.environment, "PYTHONPATH": str(cwd), **more}
        done = subprocess.run(
            [*PREFECT, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def post(self, path: str, **json: object) -> httpx.Response:
        return self._call("POST", path, json)

    def _call(self, method: str, path: str, json: object = None) -> httpx.Response:
        """Call the API; repeat the call while the database is busy, as Prefect's client does."""
        for _ in range(10):
            response = httpx.request(method, f"{self.address}/api/{path}", json=json, timeout=60)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(1)
        return response

    def run(self, deployment: str, /, **parameters: object) -> str:
        """Create a run of a deployment; return the id of the flow run."""
        deployment_id = self._call("GET", f"deployments/name/{deployment}").json()["id"]
        response = self.post(f"deployments/{deployment_id}/create_flow_run", parameters=parameters)
        assert response.status_code == 201, response.text
        return response.json()["id"]

    def state(self, run: str) -> dict:
        return self._call("GET", f"flow_runs/{run}").json()["state"]

    def final_state(self, run: str, seconds: float = 900) -> dict:
        """Wait for the end of a flow run; return its state."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):  # the server may be killed meanwhile
                if (state := self.state(run))["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                    return state
            time.sleep(0.5)
        raise AssertionError(f"after {seconds} s: {self.state(run)}\n{self.log(run)}")

    def tasks(self, run: str) -> list[dict]:
        return self.post("task_runs/filter", flow_runs={"id": {"any_": [run]}}).json()

    def log(self, run: str) -> str:
        lines: list[str] = []
        while True:
            query = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "offset": len(lines)}
            page = self.post("logs/filter", **query).json()
            lines += [line["message"] for line in page]
            if not page:
                return "\n".join([*lines, str(self.state(run)["message"])])

    def artifacts(self, run: str) -> dict[str, dict]:
        artifacts = self.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}}).json()
        return {artifact["key"]: artifact for artifact in artifacts}

    def children(self, run: str) -> list[dict]:
        """Return the flow runs that a flow run has created."""
        return self.post("flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [run]}}).json()


@contextlib.contextmanager
def proxy_that_loses_a_response(server: Server, request: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Forward connections to the server, but lose the first successful response to a request that contains `request`.

    Yields the address of the proxy and a list, which has the response once it is lost.
    """
    lost: list[bytes] = []

    class Forwarder(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.matches = False
            with socket.create_connection(("127.0.0.1", server.port)) as upstream, contextlib.suppress(OSError):
                threading.Thread(target=self.forward_responses, args=(upstream,), daemon=True).start()
                while data := self.request.recv(2**16):
                    if b" HTTP/1.1\r\n" in data:  # not the body
                        self.matches = request in data
                    upstream.sendall(data)

        def forward_responses(self, upstream: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := upstream.recv(2**16):
                    if self.matches and not lost and b" 201 " in data[:20]:
                        lost.append(data)
                        break
                    self.request.sendall(data)
                self.request.shutdown(socket.SHUT_RDWR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Forwarder) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}", lost
        proxy.shutdown()


class Worker:
    """A worker of the pool kdflow in a clone, with at most `limit` flow runs in parallel.

    `address` replaces the address of the server.
    """

    def __init__(self, server: Server, project: Project, name: str, address: str | None, limit: int) -> None:
        self.project, self.log = project, project.folder / f".kdflow-{name}.log"
        environment = {**project.environment, **server.environment, "KDFLOW_ROOT": str(project.folder)}
        environment |= {"PREFECT_API_URL": f"{address or server.address}/api"}
        environment |= {"PATH": project.environment["PATH"], "PYTHONPATH": str(project.folder)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*PREFECT, "worker", "start", "--pool", "kdflow", "--name", name, "--limit", str(limit)],
                cwd=project.folder, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        self.process.send_signal(signal_number)
        self.process.wait(60)


@contextlib.contextmanager
def running_worker(server, project, name="worker", address=None, limit=1):
    worker = Worker(server, project, name, address, limit)
    try:
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.stop()


def deployed_project(server: Server, folder: Path) -> Project:
    """Create a project with a paper of six cells and its deployments; no stage has run."""
    project = Project(folder)
    folder = project.folder / PAPER
    folder.mkdir()
    (folder / "tables.yaml").write_text(TABLES)
    (folder / "params.yaml").write_text(PARAMS)
    project.run("kdflow", "plan", "--paper", PAPER)
    project.settings(methods=["kd"], seeds=[0], epochs=1, teacher_epochs=1)
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "six cells")
    server.prefect("work-pool", "create", "kdflow", "--type", "process", cwd=project.folder)
    server.prefect("deploy", "--all", cwd=project.folder)
    return project
