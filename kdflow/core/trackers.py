"""Experiment trackers: TensorBoard, Weights & Biases, MLflow and DVCLive. Never imports torch.

Each is optional: pip install 'kdflow[log]', or only the package in use. Runs are written below a folder of this
machine, unless environment variables of the tracker name a server. A tracker changes no number of a run, and records do
not need it.

A run of a tracker has a key. A run that is opened again with its key, because training was interrupted, is continued,
and has each epoch once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kdflow.core.errors import UserError, one_line

TrackerName = Literal["tensorboard", "wandb", "mlflow", "dvclive"]
NAMES: tuple[TrackerName, ...] = get_args(TrackerName)
PROJECT = "kdflow"  # the project or experiment in which trackers show the runs
# Values of an epoch's record, and their names in trackers.
CURVES = {
    "loss": "train/loss",
    "lr": "lr",
    "top1": "test/top1",
    "held_out_top1": "held_out/top1",
    "pick_ratio": "pick_ratio",
}
FINAL = "final/top1"  # test accuracy of the exported weights, in percent


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers show it: its folder, name, identity and hyperparameters."""

    folder: Path
    name: str
    key: str
    settings: Mapping[str, bool | int | float | str]

    @property
    def path(self) -> str:
        """The name of a folder of this run."""
        return f"{re.sub(r'[^A-Za-z0-9_.+-]+', '-', self.name)}-{self.key[:8]}"


class Tracker(ABC):
    """A run of a tracker, open for writing."""

    @abstractmethod
    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write the values of an epoch, by their names."""

    @abstractmethod
    def close(self, final: Mapping[str, float], *, finished: bool) -> None:
        """Write the values of the whole run and close it; `finished` is False if it failed or was interrupted."""


class _TensorBoard(Tracker):
    """An event file with scalars and hyperparameters, as `tensorboard --logdir` reads it."""

    def __init__(self, run: TrackedRun) -> None:
        # torch.utils.tensorboard writes the same file, but imports torch.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder = run.folder / "tensorboard" / run.path
        shutil.rmtree(folder, ignore_errors=True)  # a resumed run sends its earlier epochs again
        self._writer, self._epoch = EventFileWriter(str(folder)), 0
        self._write(hparams_pb(dict(run.settings), trial_id=run.key))

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self._epoch = epoch
        self._write(self._summary(value=[{"tag": tag, "simple_value": value} for tag, value in values.items()]))

    def close(self, final: Mapping[str, float], *, finished: bool) -> None:
        if finished:
            self.log(self._epoch, final)
        self._writer.close()

    def _write(self, summary: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=self._epoch, summary=summary))
        self._writer.flush()


class _Wandb(Tracker):
    """A run of Weights & Biases, in the project kdflow or that of WANDB_PROJECT."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        run.folder.mkdir(parents=True, exist_ok=True)
        offline = os.environ.get("WANDB_MODE") == "offline"
        for earlier in run.folder.glob(f"wandb/offline-run-*-{run.key[:32]}") if offline else ():
            shutil.rmtree(earlier)  # a resumed run sends its earlier epochs again
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.key[:32],
            resume=None if offline else "allow",  # epochs that the server has already are ignored
            dir=str(run.folder),
            config=dict(run.settings),
            reinit="create_new",  # several runs are open in parallel
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=epoch, commit=True)

    def close(self, final: Mapping[str, float], *, finished: bool) -> None:
        self._run.summary.update(dict(final))
        self._run.finish(exit_code=0 if finished else 1)


class _Mlflow(Tracker):
    """A run of MLflow, in a SQLite file or on the server of MLFLOW_TRACKING_URI."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient, entities

        folder, uri = run.folder / "mlflow", os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        self._client, self._entities = MlflowClient(uri), entities
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), folder)
        found = self._client.search_runs([experiment], f"tags.`kdflow.run` = '{run.key}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {"kdflow.run": run.key}
            self._id = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
            params = [self._entities.Param(name, str(value)[:6000]) for name, value in run.settings.items()]
            for first in range(0, len(params), 100):  # MLflow's limit
                self._client.log_batch(self._id, params=params[first : first + 100])
        self._logged = {point.step for point in self._client.get_metric_history(self._id, CURVES["loss"])}

    def _experiment(self, name: str, folder: Path) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        place = None if "MLFLOW_TRACKING_URI" in os.environ else (folder / "artifacts").resolve().as_uri()
        return str(self._client.create_experiment(name, artifact_location=place))

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        if epoch not in self._logged:
            now = int(1000 * time.time())
            metrics = [self._entities.Metric(name, value, now, epoch) for name, value in values.items()]
            self._client.log_batch(self._id, metrics=metrics)

    def close(self, final: Mapping[str, float], *, finished: bool) -> None:
        for name, value in final.items():
            if not self._client.get_metric_history(self._id, name):
                self._client.log_metric(self._id, name, value)
        self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")


class _Dvclive(Tracker):
    """A folder of DVCLive with params.yaml, metrics.json and plots/. It makes no experiment of DVC and no commit."""

    def __init__(self, run: TrackedRun) -> None:
        from dvclive import Live

        folder = run.folder / "dvclive" / run.path
        shutil.rmtree(folder, ignore_errors=True)  # a resumed run sends its earlier epochs again
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._live = Live(str(folder), save_dvc_exp=False, dvcyaml=None)
        self._live.log_params(dict(run.settings))

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self._live.step = epoch
        for name, value in values.items():
            self._live.log_metric(name, value)
        self._live.make_summary()

    def close(self, final: Mapping[str, float], *, finished: bool) -> None:  # noqa: ARG002 - it has no status of a run
        for name, value in final.items():
            self._live.log_metric(name, value, plot=False)
        self._live.make_summary()
        self._live.end()


TRACKERS: dict[str, type[Any]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "dvclive": _Dvclive,
}


def require(names: Iterable[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        UserError: one is not, or is no tracker that kdflow knows.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"log: unknown name {name!r}; allowed: {', '.join(TRACKERS)}")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, such as wandb/, is found without an origin
            raise UserError(f"log: {name} is not installed: pip install {name}, or 'kdflow[log]' for all trackers")


def open_run(name: str, run: TrackedRun) -> Tracker:
    """Open a run of the tracker `name`.

    Raises:
        UserError: the tracker is not installed, or cannot be opened, such as without a login.
    """
    require([name])
    try:
        tracker: Tracker = TRACKERS[name](run)
    except Exception as error:  # any library's
        raise UserError(f"log: {name}: {one_line(error) or type(error).__name__}") from None
    return tracker


def curves(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of an epoch's record that trackers show, by their names there."""
    return {shown: values[name] for name, shown in CURVES.items() if values.get(name) is not None}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return settings as one level: keys of mappings joined by dots, lists as JSON, without those that are not set."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat
