"""The figure of an experiment: test accuracy along training, and where each seed ended."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from kdflow.report.table import Results

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")  # Okabe and Ito's


def draw(results: Results, path: Path, suffix: str) -> None:
    """Draw to `path` as svg or png; the same records give the same bytes."""
    # A fixed salt and no date: DVC sees a change only where there is one.
    with matplotlib.rc_context({"svg.hashsalt": "kdflow", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        curves, ends = figure.subplots(1, 2, width_ratios=[2, 1])
        lowest = 100.0
        for i, (method, runs) in enumerate(results.runs.items()):
            colour = COLOURS[i % len(COLOURS)]
            epochs = list(runs[0].tested)
            points = list(zip(*(run.tested.values() for run in runs), strict=True))
            mean = [statistics.fmean(values) for values in points]
            std = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in points]
            curves.plot(epochs, mean, color=colour, label=method)
            low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
            curves.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
            last = [run.last.top1 for run in runs]
            ends.plot([i] * len(last), last, "o", color=colour, alpha=0.6)
            ends.plot([i - 0.25, i + 0.25], [statistics.fmean(last)] * 2, color=colour, linewidth=2)
            lowest = min(lowest, *last)
        teacher = results.teacher.accuracy.top1
        for axes in (curves, ends):
            axes.axhline(teacher, color="grey", linestyle="--", linewidth=1, label=f"teacher {teacher:.2f}")
            axes.spines[["top", "right"]].set_visible(False)
        margin = max(1.0, (max(teacher, 0) - lowest) / 2)
        curves.set(xlabel="epoch", ylabel="test top-1 %", ylim=(max(0, lowest - 4 * margin), None))
        curves.set_title(results.title, loc="left")
        curves.legend(loc="lower right", frameon=False)
        ends.set(xticks=range(len(results.runs)), ylabel="last epoch, each seed and mean")
        ends.set_xticklabels(list(results.runs), rotation=20, ha="right")
        if results.stamp:
            figure.suptitle(f"not a full run: {results.stamp}", x=0.99, ha="right", fontsize=8, color="grey")
        figure.savefig(path, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else {"Software": None})
