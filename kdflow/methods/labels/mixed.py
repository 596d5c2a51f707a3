"""Hard labels of the two images that x' is mixed from, weighted with lambda (Yun et al., 2019; Zhang et al., 2018).

lambda CE(s(x'), y_a) + (1 - lambda) CE(s(x'), y_b), mean over the batch, where y_a and y_b are the labels of an image
and its partner: the paper's KD+CutMix. It needs no teacher.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from kdflow.methods.views import StrongBatch

NEEDS_X, NEEDS_STRONG = False, False


def loss(
    student: Float[Tensor, "k classes"],
    strong: StrongBatch,
    labels: Int64[Tensor, " b"],
    teacher_logits_x: Float[Tensor, "b classes"] | None = None,  # noqa: ARG001
    tau: float = 1.0,  # noqa: ARG001
) -> Float[Tensor, ""]:
    """Return the cross-entropy with the mixed label."""
    loss_a = F.cross_entropy(student, labels[strong.index_a], reduction="none")
    loss_b = F.cross_entropy(student, labels[strong.index_b], reduction="none")
    return (strong.lam * loss_a + (1 - strong.lam) * loss_b).mean()
