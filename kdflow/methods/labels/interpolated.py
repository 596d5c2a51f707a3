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
    teacher_logits_x: Float[Tensor, "b classes"] | None,
    tau: float,
) -> Float[Tensor, ""]:
    """The divergence from the interpolated logits."""
    assert teacher_logits_x is not None
    own = strong.lam[:, None]
    return distillation_loss(
        own * teacher_logits_x[strong.index_a] + (1 - own) * teacher_logits_x[strong.index_b], student, tau
    )
