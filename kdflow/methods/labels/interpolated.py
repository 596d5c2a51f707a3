"""Teacher logits of the two images that x' is mixed from, interpolated with lambda; the teacher never sees x'.

tau^2 KL(softmax(m / tau) || softmax(s(x') / tau)) with m = lambda t(x_a) + (1 - lambda) t(x_b), mean over the batch,
where x_a and x_b are an image and its partner: another reading of the paper's KD+CutMix.
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
    teacher_logits_x: Float[Tensor, "b classes"] | None,
    tau: float,
) -> Float[Tensor, ""]:
    """Return the divergence from the interpolated logits."""
    assert teacher_logits_x is not None
    lam = strong.lam[:, None]
    interpolated = lam * teacher_logits_x[strong.index_a] + (1 - lam) * teacher_logits_x[strong.index_b]
    return distillation_loss(interpolated, student, tau)
