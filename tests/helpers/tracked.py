"""Readers of what experiment trackers have written to a folder, by the trackers' packages as far as these can."""

import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Written:
    """A run of a tracker: points of each curve by epoch in the order written, hyperparameters as text, final values."""

    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)


def read(tracker: str, folder: Path) -> dict[str, Written]:
    """Return the runs in `folder` by their names; those of TensorBoard and DVCLive are names of folders."""
    return {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "dvclive": _dvclive}[tracker](folder)


def _tensorboard(folder: Path) -> dict[str, Written]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    runs = {}
    for path in (folder / "tensorboard").iterdir():
        events = EventAccumulator(str(path)).Reload()
        scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        settings = {key: str(getattr(value, value.WhichOneof("kind"))) for key, value in hparams.items()}
        final = {tag: scalars.pop(tag)[-1][1] for tag in list(scalars) if tag.startswith("final/")}
        runs[path.name] = Written(scalars, settings, final)
    return runs


def _wandb(folder: Path) -> dict[str, Written]:
    runs: dict[str, Written] = {}
    for file in folder.glob("wandb/offline-run-*/*.wandb"):
        written, name = Written(), ""
        for record in _closed_wandb(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name
                written.settings |= {one.key: str(json.loads(one.value_json)) for one in record.run.config.update}
            elif kind == "history":
                for item in record.history.item:
                    tag = item.nested_key[0]
                    if not tag.startswith("_"):
                        point = record.history.step.num, json.loads(item.value_json)
                        written.curves.setdefault(tag, []).append(point)
            elif kind == "summary":
                values = {one.key: json.loads(one.value_json) for one in record.summary.update}
                written.final |= {key: value for key, value in values.items() if key.startswith("final/")}
        assert name not in runs, "a run is there twice"
        runs[name] = written
    return runs


def _closed_wandb(file: Path) -> list:
    """Return the records of a closed run: wandb's service writes them a moment after the run is closed."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        records = list(_wandb_records(file.read_bytes()))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.1)
    raise AssertionError(f"{file}: not closed")


def _wandb_records(content: bytes):
    """Yield the records of a file of wandb: LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    at, parts = 7, []
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:  # the rest of a block
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(b"".join(parts))
            parts = []


def _mlflow(folder: Path) -> dict[str, Written]:
    import mlflow

    client, runs = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow/mlflow.db'}"), {}
    experiment = client.get_experiment_by_name("kdflow").experiment_id
    for run in client.search_runs([experiment]):
        tags = run.data.metrics
        points = {tag: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, tag)] for tag in tags}
        final = {tag: points.pop(tag)[-1][1] for tag in list(points) if tag.startswith("final/")}
        assert run.info.run_name not in runs, "a run is there twice"
        runs[run.info.run_name] = Written(points, run.data.params, final)
    return runs


def _dvclive(folder: Path) -> dict[str, Written]:
    from ruamel.yaml import YAML

    runs = {}
    for path in (folder / "dvclive").iterdir():
        written, plots = Written(), path / "plots/metrics"
        for file in plots.rglob("*.tsv"):
            lines = [line.split("\t") for line in file.read_text().splitlines()[1:]]
            tag = file.relative_to(plots).with_suffix("").as_posix()
            written.curves[tag] = [(int(step), float(value)) for step, value in lines]
        written.settings = {key: str(value) for key, value in YAML(typ="safe").load(path / "params.yaml").items()}
        written.final = {
            f"final/{key}": v for key, v in json.loads((path / "metrics.json").read_text())["final"].items()
        }
        runs[path.name] = written
    return runs
