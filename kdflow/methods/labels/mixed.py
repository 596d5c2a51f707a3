"""The hard labels of the images that x' is made of, mixed by their shares (Yun et al., 2019; Zhang et al., 2018).

own CE(s(x'), y) + (1 - own) CE(s(x'), y of the partner), mean over the batch: the paper's KD+CutMix, no teacher.
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
    """Cross-entropy with the mixed label."""
    own = F.cross_entropy(student, labels[strong.index_a], reduction="none")
    partner = F.cross_entropy(student, labels[strong.index_b], reduction="none")
    return (strong.lam * own + (1 - strong.lam) * partner).mean()
