"""Where teacher and mixed label disagree about a strong view (the paper's Appendix D and Figure 5)."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from kdflow.config import RunSettings, Settings, StrongView
from kdflow.core import files
from kdflow.data import Loaded
from kdflow.methods.views import StrongBatch, channel_mean_std
from kdflow.training.batches import make_batches
from kdflow.training.epoch_plan import draw_plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Label(Settings):
    """A class and how much of a label it has, between 0 and 1."""

    name: str
    share: float


class Sample(Settings):
    """A strong view on which they disagree: what its mixed label says, and the teacher's first five."""

    mixed: list[Label]
    teacher: list[Label]


class DisagreementResult(Settings):
    """Over one epoch of strong views: the percentage of which teacher and mixed label see another class first.

    `budget_note` says at which budget data and teacher were made where that is not a full one.
    """

    view: str
    seed: int
    views: int
    percent: float
    budget_note: str
    samples: list[Sample]


def measure(
    teacher: nn.Module, data: Loaded, run: RunSettings, mix: str, budget_note: str, samples: int = 8
) -> tuple[DisagreementResult, Tensor]:
    """Label the first epoch of strong views that `run` would see, by the teacher and by their mixed label.

    Args:
        teacher: in eval mode.
        mix: a strong view, such as cutmix.
        samples: how many views to show, of as many batches as there are: a batch has one lambda and one box.

    Returns:
        The figures, and the samples' pictures, uint8 [samples, height, width, 3].
    """
    views = differ = 0
    shown: list[Sample] = []
    pictures: list[Tensor] = []
    mean, std = channel_mean_std(run.base_view, data.train.labels.device)
    per_batch = math.ceil(samples / math.ceil(len(data.train) / run.training.batch_size))
    with torch.inference_mode():
        for labels, strong in _strong_views(data, run, mix):
            said = teacher(strong.images).softmax(1)
            wrong = said.argmax(1) != _first_class(strong, labels)
            views, differ = views + len(labels), differ + int(wrong.sum())
            for i in wrong.nonzero().flatten().tolist()[: min(per_batch, samples - len(shown))]:
                shown.append(_sample(strong, labels, said, i, data.class_names))
                pictures.append((strong.images[i] * std[0] + mean[0]).clamp(0, 1).mul(255).round().byte())
    size = run.image_size
    stacked = torch.stack(pictures).permute(0, 2, 3, 1).cpu() if pictures else torch.zeros(0, size, size, 3).byte()
    result = DisagreementResult(
        view=mix, seed=run.seed, views=views, percent=100 * differ / views, budget_note=budget_note, samples=shown
    )
    return result, stacked


def _strong_views(data: Loaded, run: RunSettings, mix: str) -> Iterator[tuple[Int64[Tensor, " b"], StrongBatch]]:
    view: Any = importlib.import_module(f"kdflow.methods.views.{mix}")
    images, batch_size = data.train, run.training.batch_size
    device = images.labels.device
    plan = draw_plan(run.seed, 0, len(images), batch_size, run.image_size, run.base_view, StrongView(view=mix), device)
    for batch in make_batches(images, run.base_view)(plan):
        yield batch.labels, view.apply(batch.x, batch.row.strong[0])


def _first_class(strong: StrongBatch, labels: Int64[Tensor, " b"]) -> Int64[Tensor, " n"]:
    """The argmax of the mixed label; the image's own class where both have half."""
    return torch.where(strong.lam >= 0.5, labels[strong.index_a], labels[strong.index_b])


def _sample(strong: StrongBatch, labels: Tensor, said: Tensor, i: int, names: list[str]) -> Sample:
    shares: dict[str, float] = {}
    own = strong.lam[i].item()
    for image, share in ((strong.index_a[i], own), (strong.index_b[i], 1 - own)):
        name = names[int(labels[image])]
        shares[name] = shares.get(name, 0.0) + share
    mixed = sorted((Label(name=name, share=share) for name, share in shares.items()), key=lambda label: -label.share)
    first = said[i].topk(min(5, said.shape[1]))
    taught = [Label(name=names[c], share=p) for p, c in zip(first.values.tolist(), first.indices.tolist(), strict=True)]
    return Sample(mixed=mixed, teacher=taught)


def write(result: DisagreementResult, pictures: Tensor, out: Path) -> None:
    """Write disagreement.json and, as the paper's Figure 5, samples.png and samples.svg to `out`."""
    from kdflow.report.experiment_figure import save

    files.write_text(out / "disagreement.json", result.model_dump_json(indent=2) + "\n")
    figure = _draw(result, pictures)
    for suffix in ("png", "svg"):
        with files.atomic_write(out / f"samples.{suffix}") as beside:
            save(figure, beside, suffix, bbox_inches="tight")


def _draw(result: DisagreementResult, pictures: Tensor) -> Figure:
    from matplotlib.figure import Figure

    columns = 4
    rows = max(1, math.ceil(len(pictures) / columns))
    figure = Figure(figsize=(2.4 * columns, 3.4 * rows), layout="constrained")
    share = f"on {result.percent:.1f} % of {result.views:,} views teacher and {result.view}'s label disagree"
    figure.suptitle(share + (f"\nnot a full run: {result.budget_note}" if result.budget_note else ""), fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, sample, picture in zip(grid.flat, result.samples, pictures, strict=False):
        axes.imshow(picture.numpy(), interpolation="nearest")
        said = [f"{result.view}", *(f"  {label.share:.2f} {label.name}" for label in sample.mixed)]
        said += ["teacher", *(f"  {label.share:.2f} {label.name}" for label in sample.teacher)]
        axes.text(0, -0.03, "\n".join(said), transform=axes.transAxes, va="top", fontsize=7)
    return figure
