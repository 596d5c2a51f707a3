"""TL: x' is labelled by the teacher (the paper's Section 3.2 (1)).

tau^2 KL(softmax(t(x') / tau) || softmax(s(x') / tau)), mean over the batch. There is no hard label.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor

from kdflow.methods.losses import distillation_loss
from kdflow.methods.views import StrongBatch

NEEDS_X, NEEDS_STRONG = False, True


def loss(
    student: Float[Tensor, "k classes"],
    strong: StrongBatch,
    labels: Int64[Tensor, " b"],  # noqa: ARG001
    teacher_logits_x: Float[Tensor, "b classes"] | None,  # noqa: ARG001
    tau: float,
) -> Float[Tensor, ""]:
    """Return the divergence from the teacher's logits of x'."""
    assert strong.teacher_logits is not None
    return distillation_loss(strong.teacher_logits, student, tau)
