"""The data of an experiment's figure for `dvc plots`: dvc.yaml names the files and their columns."""

from __future__ import annotations

import statistics
from typing import Any

from kdflow.report.experiment_table import ExperimentResults

Rows = list[dict[str, Any]]


def plot_data(results: ExperimentResults) -> dict[str, Rows]:
    """Return the rows of each file: means over seeds of test accuracy in percent and of training loss.

    `accuracy` and `loss` have a row for each epoch with a column for each method, `last_epoch` a row for each method.
    """
    epochs = [point.epoch for point in next(iter(results.runs.values()))[0].curve]
    accuracy: Rows = [{"epoch": epoch} for epoch in epochs]
    loss: Rows = [{"epoch": epoch} for epoch in epochs]
    for method, runs in results.runs.items():
        for i, points in enumerate(zip(*(run.curve for run in runs), strict=True)):
            measured = [point.top1 for point in points if point.top1 is not None]
            accuracy[i] |= {method: statistics.fmean(measured)} if measured else {}
            loss[i][method] = statistics.fmean(point.loss for point in points)
    return {
        "accuracy": [row for row in accuracy if len(row) > 1],  # it is not measured in every epoch
        "loss": loss,
        "last_epoch": [
            {"method": method, "top1": statistics.fmean(run.final.top1 for run in runs)}
            for method, runs in results.runs.items()
        ],
    }
