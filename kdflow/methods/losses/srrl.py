"""Softmax regression representation learning (Yang et al., 2021): the teacher's classifier reads the student's feature.

Formula, after their Section 3: alpha mean((h - f_t)^2) + beta mean((W_t(h) - W_t(f_t))^2). f_t is the pooled
feature of the teacher and W_t its classifier, so that W_t(f_t) are its logits. h = ReLU(BN(A f_s)) is the pooled
feature of the student after a linear layer without bias to the teacher's width, batch norm and ReLU; these are
trained. The classifier is not: gradients pass through it to the student. The means are over batch and entries. The
paper also has a cross-entropy in place of the second mean.

Settings: alpha and beta (default 1.0 each). The usual weight is 1, beside KD, as in SimKD's code (Chen et al., 2022),
which has the same connector.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.methods.losses import LossInputs, require_not_negative
from kdflow.models.features import Outputs, pooled_features

NEEDS_FEATURES = True


class SoftmaxRegression(nn.Module):
    """Squared errors of the connected feature and of the teacher's classifier on it."""

    def __init__(self, student_width: int, teacher_width: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta
        linear = nn.Linear(student_width, teacher_width, bias=False)
        self.connector = nn.Sequential(linear, nn.BatchNorm1d(teacher_width), nn.ReLU())

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        student, teacher = pooled_features("srrl", inputs.student, inputs.teacher)
        assert inputs.teacher_head is not None  # the teacher has a pooled feature
        connected: Tensor = self.connector(student)
        loss = self.alpha * F.mse_loss(connected, teacher)
        return loss + self.beta * F.mse_loss(inputs.teacher_head(connected), inputs.teacher.logits.detach())


def build(
    student: Outputs,
    teacher: Outputs,
    labels: Int64[Tensor, " n"],  # noqa: ARG001
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> SoftmaxRegression:
    """Return a fresh connector, drawn from torch's global generator.

    Raises:
        ValueError: a model names no pooled feature, or a weight is negative.
    """
    require_not_negative(alpha=alpha, beta=beta)
    student_feature, teacher_feature = pooled_features("srrl", student, teacher)
    return SoftmaxRegression(student_feature.shape[1], teacher_feature.shape[1], alpha, beta)
