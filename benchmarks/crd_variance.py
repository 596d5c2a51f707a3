"""Benchmark of the variance of CRD's gradient: kdflow's negatives against independent draws for each image.

    python benchmarks/crd_variance.py [--steps 0 200] [--json benchmarks/results/crd_variance.json]

The data are synthetic features with the sizes of CIFAR-100: ReLU(centre of the class + noise), for student and teacher.
Both embeddings and the banks are trained for some steps. Then the gradient with respect to the embeddings' parameters
is computed for several batches, and several draws of negatives for each batch. All draws give the same mean gradient.
The variance is the sum over all parameters, relative to that of independent draws: of the negatives for a given batch,
and in total, which includes the choice of the batch. The standard error is that over the batches; the share is that of
the negatives in the total variance.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from jaxtyping import Float, Int64
from machine import describe_machine, save_results
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from kdflow.methods.losses import LossInputs, crd
from kdflow.models.features import Outputs

CLASSES, WIDTH, BATCH = 100, 64, 64
Rows = Int64[Tensor, "b m"]


def independent(sampler: crd.NegativeSampler, index: Int64[Tensor, " b"], generator: torch.Generator) -> Rows:
    """Draw a permutation for each image."""
    n = len(sampler.bank_row)
    return torch.stack([_window(sampler, i, torch.randperm(n, generator=generator)) for i in index.tolist()])


def _window(sampler: crd.NegativeSampler, image: int, permutation: Int64[Tensor, " n"]) -> Int64[Tensor, " m"]:
    first, size = sampler.first_row[image], sampler.class_size[image]
    rows = permutation[: sampler.count + sampler.largest]
    return rows[(rows < first) | (rows >= first + size)][: sampler.count]


DRAWS: dict[str, Callable[[crd.NegativeSampler, Int64[Tensor, " b"], torch.Generator], Rows]] = {
    "independent": independent,
    "kdflow": lambda sampler, index, generator: sampler(index, generator),
}


class Features:
    """Random features of student and teacher for all images."""

    def __init__(self, images: int, generator: torch.Generator) -> None:
        self.labels = torch.arange(images) % CLASSES
        self.student, self.teacher = (
            (
                torch.randn(CLASSES, WIDTH, generator=generator)[self.labels]
                + torch.randn(images, WIDTH, generator=generator)
            ).relu()
            for _ in range(2)
        )

    def inputs(self, index: Int64[Tensor, " b"], draws: Tensor | None = None) -> LossInputs:
        """Return a batch as the loss takes it."""
        student, teacher = (
            Outputs(torch.zeros(len(index), CLASSES), (), pooled[index]) for pooled in (self.student, self.teacher)
        )
        return LossInputs(student, teacher, self.labels[index], index, 0.0, draws)


def gradient(loss: crd.ContrastiveRepresentation, inputs: LossInputs, negatives: Rows) -> Float[Tensor, " p"]:
    """Return the gradient of a batch with given negatives; the banks stay as they are."""
    row, banks = loss.sampler.bank_row[inputs.index], (loss.bank_student, loss.bank_teacher)
    before = [bank[row] for bank in banks]
    with patch.object(crd.NegativeSampler, "forward", lambda *_: negatives):
        grads = torch.autograd.grad(loss(inputs), list(loss.parameters()))
    for bank, entries in zip(banks, before, strict=True):
        bank[row] = entries
    return parameters_to_vector(grads)


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--negatives", type=int, default=16_384)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 200], help="steps of training before, increasing")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--draws", type=int, default=24, help="draws of negatives for each batch")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    features = Features(args.images, generator)
    example = features.inputs(torch.arange(2))
    loss = crd.build(example.student, example.teacher, features.labels, negatives=args.negatives)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.05, momentum=0.9)
    print(describe_machine())
    print(f"{args.images} images, {args.negatives} negatives, {args.batches} batches, {args.draws} draws for each")
    results, done = {}, 0
    for steps in args.steps:
        for _ in range(max(1, steps - done)):  # the first batch sets Z
            index = torch.randint(args.images, (BATCH,), generator=generator)
            optimizer.zero_grad()
            loss(features.inputs(index, loss.draw(BATCH, generator))).backward()
            if steps:
                optimizer.step()
        done = steps
        results[f"after {steps} steps"] = measured = measure(loss, features, args.batches, args.draws, generator)
        for name, ratios in measured.items():
            print(
                f"after {steps} steps, {name}: variance of the negatives {ratios['negatives']:.3f} "
                f"+- {ratios['negatives_se']:.3f}, in total {ratios['total']:.5f}; share of the negatives "
                f"{ratios['share']:.1e}"
            )
    save_results(
        args.json, arguments={key: value for key, value in vars(args).items() if key != "json"}, ratios=results
    )


def measure(
    loss: crd.ContrastiveRepresentation, features: Features, batches: int, draws: int, generator: torch.Generator
) -> dict[str, dict[str, float]]:
    """Return the variances relative to those of independent draws, by the name of the draw."""
    variances: dict[str, list[float]] = {name: [] for name in DRAWS}
    means = []
    for _ in range(batches):
        index = torch.randperm(len(features.labels), generator=generator)[:BATCH]
        inputs = features.inputs(index)
        for name, draw in DRAWS.items():
            found = torch.stack([gradient(loss, inputs, draw(loss.sampler, index, generator)) for _ in range(draws)])
            variances[name].append(found.var(0).sum().item())
            if name == "independent":
                means.append(found.mean(0))
    reference = statistics.mean(variances["independent"])
    of_batches = torch.stack(means).var(0).sum().item() - reference / draws
    ratios = {}
    for name, values in variances.items():
        pairs = [a / reference for a in values]
        ratios[name] = {
            "negatives": statistics.mean(pairs),
            "negatives_se": statistics.stdev(pairs) / batches**0.5,
            "total": (statistics.mean(values) + of_batches) / (reference + of_batches),
            "share": statistics.mean(values) / (statistics.mean(values) + of_batches),
        }
    return ratios


if __name__ == "__main__":
    main()
