"""The figure of a paper's table of claims: each difference with its confidence interval."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from kdflow.report.claims import CONFIDENCE, ClaimResult, Verdict

COLOURS: dict[Verdict, str] = {"holds": "#009e73", "undecided": "grey", "does not hold": "#d55e00"}  # Okabe and Ito


def draw(claims: Sequence[ClaimResult]) -> Figure:
    """Draw one row for each comparison that has an interval, with the number of its claim."""
    rows = [
        (number, result) for number, one in enumerate(claims, 1) for result in one.results if result.low is not None
    ]
    figure = Figure(figsize=(8, 0.7 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, (_, result) in enumerate(rows):
        assert result.difference is not None and result.low is not None and result.high is not None
        colour = COLOURS[result.verdict]
        axes.plot([result.low, result.high], [y, y], linewidth=2, color=colour)
        axes.plot([result.difference.mean], [y], "o", color=colour)
        text = f"{result.verdict}, n = {result.difference.n}"
        axes.annotate(text, (result.high, y), textcoords="offset points", xytext=(6, -3), fontsize=7, color=colour)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{result.label}  ({i})" for i, result in rows])
    axes.invert_yaxis()
    axes.margins(x=0.2, y=0.5 / max(1, len(rows)))
    axes.set_xlabel(f"difference of test accuracies in points, {CONFIDENCE:.0%} interval")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure
