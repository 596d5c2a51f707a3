"""What the teacher says of the images that x' is made of, mixed by their shares; it never sees x' itself.

tau^2 KL(softmax(m / tau) || softmax(s(x') / tau)) with m = own t(x) + (1 - own) t(x of the partner), mean over
the batch: the other way to read the paper's KD+CutMix.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor

from kdflow.methods.losses import distillation_loss
from kdflow.methods.views import StrongBatch

NEEDS_X, NEEDS_STRONG = True, False


def loss(
    student: Float[Tensor, "k classes"],
    strong: StrongBatch,
    labels: Int64[Tensor, " b"],  # noqa: ARG001
    taught_x: Float[Tensor, "b classes"] | None,
    tau: float,
) -> Float[Tensor, ""]:
    """The divergence from the interpolated logits."""
    assert taught_x is not None
    own = strong.own[:, None]
    return distillation_loss(own * taught_x[strong.image] + (1 - own) * taught_x[strong.partner], student, tau)
