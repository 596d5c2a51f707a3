"""Measure what a store of teacher logits in float16 changes: the KL divergence of each batch, and its gradient.

    python benchmarks/float16_logits.py DATASET.h5 TEACHER [--student FILE] [--json FILE]

The teacher (ResNet56) and the student (ResNet8) are evaluated on the first training images of prepared CIFAR-100. The
KL divergence (the paper's Eq. 3, tau 4, mean of a batch of 64, float32) is computed with the teacher's float32 logits
and with the same logits rounded to float16, as a store keeps them, and both are compared. The gradient is that with
respect to the student's logits. Without --student, the student has initial weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from jaxtyping import Float
from machine import describe_machine, save_results
from torch import Tensor

from kdflow import config, data
from kdflow.methods.losses import kl_per_sample
from kdflow.models import convert_weights, create_model
from kdflow.training.evaluate import predict_logits

ROOT, TAU, BATCH = Path(__file__).parents[1], 4.0, 64


def kl_and_gradient(
    teacher: Float[Tensor, "b classes"], student: Float[Tensor, "b classes"]
) -> tuple[float, Float[Tensor, "b classes"]]:
    """Return the mean KL divergence of a batch and its gradient with respect to the student's logits."""
    logits = student.clone().requires_grad_()
    kl = kl_per_sample(teacher, logits, TAU).mean()
    (gradient,) = torch.autograd.grad(kl, logits)
    return kl.item(), gradient


def main() -> None:
    """Measure and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="CIFAR-100 as `kdflow` prepared it")
    parser.add_argument("teacher", type=Path, help="weights of a ResNet56")
    parser.add_argument("--student", type=Path, help="weights of a ResNet8; default: initial weights")
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipes = config.load_recipes(ROOT)
    view = recipes.datasets["cifar100"].base_view
    assert view is not None
    images = data.load(args.dataset, args.images, torch.device("cpu")).train
    logits = []
    for name, file in (("resnet56", args.teacher), ("resnet8", args.student)):
        model = create_model(name, recipes.models[name], 100, 32)
        if file is not None:
            convert_weights.load_any_format(model, file)
        logits.append(predict_logits(model, images, view).clone())
    teacher, student = logits
    kls, absolute, relative, gradients = [], [], [], []
    for exact, other in zip(teacher.split(BATCH), student.split(BATCH), strict=True):
        kl, gradient = kl_and_gradient(exact, other)
        rounded_kl, rounded_gradient = kl_and_gradient(exact.half().float(), other)
        kls.append(kl)
        absolute.append(abs(rounded_kl - kl))
        relative.append(abs(rounded_kl - kl) / kl)
        gradients.append(((rounded_gradient - gradient).norm() / gradient.norm()).item())
    results = {
        "images": len(images),
        "batches": len(kls),
        "largest_logit": teacher.abs().max().item(),
        "mean_kl": sum(kls) / len(kls),
        "max_difference_of_kl": max(absolute),
        "max_relative_difference_of_kl": max(relative),
        "max_relative_difference_of_gradient": max(gradients),
    }
    print(describe_machine())
    for key, value in results.items():
        print(f"{key:>36}: {value:.3g}" if isinstance(value, float) else f"{key:>36}: {value:,}")
    save_results(args.json, student="given" if args.student else "initial weights", **results)


if __name__ == "__main__":
    main()
