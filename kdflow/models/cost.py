"""Parameters and floating point operations of a model for one image, true and by the paper's convention.

Parameters are the weights and biases of convolutions and fully connected layers, with the projections inside
`nn.MultiheadAttention`. Normalisation, class tokens, position embeddings and layer scales are not counted. A parameter
that several layers share counts once.

FLOPs are counted by torch (`FlopCounterMode`): 2 for each multiply-add of those layers' weights and of the products of
queries, keys and values inside attention. Biases, normalisation, activations and pooling are not counted.

The paper (Tables 6-8) divides the FLOPs of grouped and depthwise convolutions by `groups` twice. `paper_flops` follows
its convention; for models without such convolutions it equals `flops`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from kdflow.config import Experiment, unknown_name
from kdflow.core.errors import UserError, one_line
from kdflow.models import create_model_on_meta

COLUMNS = ("Model", "Params\n1e6", "Compression", "GFLOPs", "Speed-up", "Paper's\nGFLOPs", "Paper's\nspeed-up")
NOTES = (
    "Params: weights and biases of convolutions and fully connected layers. FLOPs: 2 for each multiply-add of these "
    "weights, for one image.",
    "Compression, speed-up: relative to the teacher above. Paper's: its tables divide the FLOPs of grouped "
    "convolutions by groups twice.",
)
LAYERS_THAT_COUNT = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention)


@dataclass(frozen=True)
class Cost:
    """Parameters, and FLOPs for one image: true, and by the paper's convention."""

    params: int
    flops: int
    paper_flops: int


@dataclass(frozen=True)
class Ratios:
    """Ratios of a teacher's cost to a student's, from exact counts."""

    compression: float
    speed_up: float
    paper_speed_up: float


@dataclass(frozen=True)
class CostRow:
    """A model with its cost and the ratios of the teacher's cost to it; None for the teacher."""

    model: str
    cost: Cost
    ratios: Ratios | None


def count_cost(model: nn.Module, image_size: int) -> Cost:
    """Count the cost of `model` for one image of 3 channels, on a copy and without computing values."""
    # On the meta device attention does not use fused kernels, for which the counter has no formula.
    shapes = copy.deepcopy(model).to("meta", torch.float32).eval().requires_grad_(False)  # the counter tracks gradients
    _remove_batch_norm(shapes)
    left_out: list[int] = []  # by the paper's convention, for each convolution

    def convolution(x: Any, weight: Any, *rest: Any, out_shape: Any) -> int:
        """Count `aten.convolution` from the shapes of its tensors."""
        _bias, _stride, _padding, _dilation, transposed, _output_padding, groups = rest
        flops = int(conv_flop_count(x, weight, out_shape, transposed))
        left_out.append(flops - flops // int(groups))
        return flops

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution: convolution})
    with torch.no_grad(), counter:
        shapes(torch.empty(1, 3, image_size, image_size, device="meta"))
    layers = (module for module in shapes.modules() if isinstance(module, LAYERS_THAT_COUNT))
    weights = {parameter for layer in layers for parameter in layer.parameters()}
    flops = counter.get_total_flops()
    return Cost(sum(weight.numel() for weight in weights), flops, flops - sum(left_out))


def _remove_batch_norm(model: nn.Module) -> None:
    """Replace batch normalisation, which keeps shapes, is not counted, and is slow on the meta device."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                setattr(module, name, nn.Identity())


def ratios(teacher: Cost, student: Cost) -> Ratios:
    """Return the ratios of a teacher's cost to a student's."""
    return Ratios(
        compression=teacher.params / student.params,
        speed_up=teacher.flops / student.flops,
        paper_speed_up=teacher.paper_flops / student.paper_flops,
    )


def compare(experiment: Experiment, dataset: str, names: Sequence[str]) -> list[CostRow]:
    """Count the cost of models on a dataset's images and compare them with the teacher, the first of `names`.

    Without names, the teacher and student of each of the dataset's pairs are compared.

    Raises:
        UserError: a name is unknown, the dataset has no pairs, or a model does not accept images of its size.
    """
    if dataset not in experiment.datasets:
        raise unknown_name("dataset", dataset, experiment.datasets)
    groups = [names] if names else [(p.teacher, p.student) for p in experiment.pairs.values() if dataset in p.datasets]
    if not groups:
        paired = sorted({name for pair in experiment.pairs.values() for name in pair.datasets})
        raise UserError(f"dataset: {dataset} has no pairs ({', '.join(paired)} have); give the models to compare")
    unique = dict.fromkeys(name for group in groups for name in group)
    costs = {name: _cost(experiment, dataset, name) for name in unique}
    return [
        CostRow(name, costs[name], ratios(costs[group[0]], costs[name]) if i else None)
        for group in groups
        for i, name in enumerate(group)
    ]


def _cost(experiment: Experiment, dataset: str, name: str) -> Cost:
    if name not in experiment.models:
        raise unknown_name("model", name, experiment.models)
    data = experiment.datasets[dataset].data
    model = create_model_on_meta(name, experiment.models[name], data.classes, data.image_size)
    try:
        return count_cost(model, data.image_size)
    except Exception as error:  # Libraries' models raise exceptions of many types.
        raise UserError(
            f"{name} does not accept images of {data.image_size} px: {one_line(error) or type(error).__name__}"
        ) from None


def format_row(row: CostRow) -> tuple[str, ...]:
    """Format a row for `COLUMNS`, with the paper's number of digits."""
    cost, ratio = row.cost, row.ratios
    millions, billions = 1e6, 1e9
    return (
        row.model,
        f"{cost.params / millions:.4f}",
        f"{ratio.compression:.4f}" if ratio else "",
        f"{cost.flops / billions:.4f}",
        f"{ratio.speed_up:.4f}" if ratio else "",
        f"{cost.paper_flops / billions:.4f}",
        f"{ratio.paper_speed_up:.4f}" if ratio else "",
    )


def as_json(rows: Sequence[CostRow]) -> str:
    """Return the rows with every digit; the ratios of a teacher are null."""
    no_ratios = dict.fromkeys((field.name for field in fields(Ratios)), None)
    return json.dumps(
        [{"model": row.model, **asdict(row.cost), **(asdict(row.ratios) if row.ratios else no_ratios)} for row in rows],
        indent=2,
    )
