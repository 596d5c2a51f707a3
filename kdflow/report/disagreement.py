"""Disagreement of the teacher with the mixed labels of strong views (the paper's Appendix D and Figure 5)."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kdflow.config import Experiment, RunSettings, StrongView, choices, unknown_name
from kdflow.core import files
from kdflow.data import Loaded, load
from kdflow.methods.views import StrongBatch, channel_mean_std
from kdflow.report.disagreement_result import DisagreementResult, Label, Sample
from kdflow.training import record
from kdflow.training.batches import make_batches
from kdflow.training.device import pick_device
from kdflow.training.epoch_plan import draw_plan
from kdflow.training.record import TeacherRecord
from kdflow.training.run import load_teacher

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_disagreement(experiment: Experiment, view: str, dataset: Path, teacher: Path, out: Path) -> None:
    """Compare an experiment's teacher with the mixed labels of a strong view; write counts and samples to `out`.

    Args:
        experiment: Settings of data, teacher and seed.
        view: Name of a strong view, such as cutmix.
        dataset: File of the prepared dataset.
        teacher: Folder with the teacher's weights.
        out: Folder to write to.

    Raises:
        UserError: there is no such view, or a file is missing.
    """
    if view not in choices("views"):
        raise unknown_name("view", view, choices("views"))
    params = experiment.params
    device = pick_device(params.compute.device)
    run = experiment.student_run("kd", params.seeds[0])
    data = load(dataset, run.train_images, device, params.compute.resolved_workers)
    model, _ = load_teacher(teacher / "model.safetensors", run, device)
    teacher_record = record.read_record(teacher / "record.json", TeacherRecord)
    # The students' epochs do not matter: only data and teacher are used.
    full_run = run.model_copy(update={"training": experiment.dataset.training})
    budget_note = record.make_budget(full_run, experiment.dataset, teacher_record.budget).budget_note
    result, pictures = measure(model, data, run, view, budget_note)
    write(result, pictures, out)
    print(f"{params.teacher} and {view}'s label disagree on {result.percent:.1f} % of {result.views:,} views: {out}/")


def measure(
    teacher: nn.Module, data: Loaded, run: RunSettings, view: str, budget_note: str, samples: int = 8
) -> tuple[DisagreementResult, Tensor]:
    """Compare the teacher's prediction with the mixed label for each strong view of a run's first epoch.

    Args:
        teacher: Model in eval mode.
        data: Images and labels; the training images are used.
        run: Settings of the run: seed, batch size and base view.
        view: Name of a strong view, such as cutmix.
        budget_note: Note on a reduced budget, kept in the result.
        samples: Number of samples to keep. They come from as many batches as possible, as a batch has one lambda and
            one box.

    Returns:
        The counts, and the samples' pictures, uint8 [samples, height, width, 3].
    """
    views = disagreements = 0
    kept: list[Sample] = []
    pictures: list[Tensor] = []
    mean, std = channel_mean_std(run.base_view, data.train.labels.device)
    per_batch = math.ceil(samples / math.ceil(len(data.train) / run.training.batch_size))
    with torch.inference_mode():
        for labels, strong in _strong_views(data, run, view):
            probabilities = teacher(strong.images).softmax(1)
            differs = probabilities.argmax(1) != _mixed_argmax(strong, labels)
            views, disagreements = views + len(labels), disagreements + int(differs.sum())
            for i in differs.nonzero().flatten().tolist()[: min(per_batch, samples - len(kept))]:
                kept.append(_sample(strong, labels, probabilities, i, data.class_names))
                pictures.append((strong.images[i] * std[0] + mean[0]).clamp(0, 1).mul(255).round().byte())
    size = run.image_size
    stacked = torch.stack(pictures).permute(0, 2, 3, 1).cpu() if pictures else torch.zeros(0, size, size, 3).byte()
    percent = 100 * disagreements / views
    result = DisagreementResult(
        view=view, seed=run.seed, views=views, percent=percent, budget_note=budget_note, samples=kept
    )
    return result, stacked


def _strong_views(data: Loaded, run: RunSettings, view: str) -> Iterator[tuple[Int64[Tensor, " b"], StrongBatch]]:
    module: Any = importlib.import_module(f"kdflow.methods.views.{view}")
    images, batch_size = data.train, run.training.batch_size
    strong, device = StrongView(view=view), images.labels.device
    plan = draw_plan(run.seed, 0, len(images), batch_size, run.image_size, run.base_view, strong, device)
    for batch in make_batches(images, run.base_view)(plan):
        yield batch.labels, module.apply(batch.x, batch.plan.strong[0])


def _mixed_argmax(strong: StrongBatch, labels: Int64[Tensor, " b"]) -> Int64[Tensor, " n"]:
    """Return the argmax of each mixed label; image a's class if both classes have a probability of one half."""
    return torch.where(strong.lam >= 0.5, labels[strong.index_a], labels[strong.index_b])


def _sample(
    strong: StrongBatch,
    labels: Int64[Tensor, " b"],
    probabilities: Float[Tensor, "n classes"],
    i: int,
    names: list[str],
) -> Sample:
    mixed: dict[str, float] = {}
    lam = strong.lam[i].item()
    for image, probability in ((strong.index_a[i], lam), (strong.index_b[i], 1 - lam)):
        name = names[int(labels[image])]
        mixed[name] = mixed.get(name, 0.0) + probability
    most = probabilities[i].topk(min(5, probabilities.shape[1]))
    predicted = zip(most.values.tolist(), most.indices.tolist(), strict=True)
    return Sample(
        mixed=[Label(name=name, probability=p) for name, p in sorted(mixed.items(), key=lambda item: -item[1])],
        teacher=[Label(name=names[c], probability=p) for p, c in predicted],
    )


def write(result: DisagreementResult, pictures: Tensor, out: Path) -> None:
    """Write disagreement.json and, in the layout of the paper's Figure 5, samples.png and samples.svg to `out`."""
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
    title = f"on {result.percent:.1f} % of {result.views:,} views teacher and {result.view}'s label disagree"
    figure.suptitle(title + (f"\nnot a full run: {result.budget_note}" if result.budget_note else ""), fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, sample, picture in zip(grid.flat, result.samples, pictures, strict=False):
        axes.imshow(picture.numpy(), interpolation="nearest")
        lines = [f"{result.view}", *(f"  {label.probability:.2f} {label.name}" for label in sample.mixed)]
        lines += ["teacher", *(f"  {label.probability:.2f} {label.name}" for label in sample.teacher)]
        axes.text(0, -0.03, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=7)
    return figure
