"""The figure of an experiment: test accuracy during training, and at the end for each seed."""

from __future__ import annotations

import itertools
import statistics
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from kdflow.report.experiment_table import ExperimentResults

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")  # Okabe and Ito


def draw(results: ExperimentResults, path: Path, suffix: str) -> None:
    """Draw to `path` as svg or png. The same records give the same bytes."""
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        curves, ends = figure.subplots(1, 2, width_ratios=[2, 1])
        colours = dict(zip(results.runs, itertools.cycle(COLOURS), strict=False))
        for i, (method, runs) in enumerate(results.runs.items()):
            points = list(zip(*(run.tested.values() for run in runs), strict=True))
            epochs, style = list(runs[0].tested), {"color": colours[method]}
            curves.plot(epochs, [statistics.fmean(values) for values in points], **style)
            curves.fill_between(
                epochs, list(map(min, points)), list(map(max, points)), **style, alpha=0.15, linewidth=0
            )
            last = [run.final.top1 for run in runs]
            ends.plot([i] * len(last), last, "o", **style, alpha=0.6)
            ends.plot([i - 0.25, i + 0.25], [statistics.fmean(last)] * 2, **style, linewidth=2)
        teacher = results.teacher.accuracy.top1
        for axes in (curves, ends):
            axes.axhline(teacher, color="grey", linestyle="--", linewidth=1)
            axes.spines[["top", "right"]].set_visible(False)
        curves.text(0, teacher, " teacher", transform=curves.get_yaxis_transform(), va="bottom", color="grey")
        lowest = min([teacher, *(run.final.top1 for runs in results.runs.values() for run in runs)])
        curves.set(xlabel="epoch", ylabel="test top-1 %, mean and range of seeds", ylim=(max(0, lowest - 10), None))
        curves.set_title(results.title, loc="left")
        ends.set(xticks=range(len(results.runs)), ylabel="last epoch, each seed and mean")
        for label, method in zip(
            ends.set_xticklabels(list(results.runs), rotation=20, ha="right"), colours, strict=True
        ):
            label.set_color(colours[method])
        if results.budget_note:
            figure.suptitle(f"not a full run: {results.budget_note}", x=0.99, ha="right", fontsize=8, color="grey")
        save(figure, path, suffix)


def save(figure: Figure, file: Path | BytesIO, suffix: str, **options: Any) -> None:
    """Save as svg or png. The same figure gives the same bytes, so that DVC sees a change only if there is one."""
    metadata = {"Date": None} if suffix == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "kdflow"}):
        figure.savefig(file, format=suffix, dpi=150, metadata=metadata, **options)
