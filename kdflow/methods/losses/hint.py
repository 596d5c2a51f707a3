"""Hints of FitNets (Romero et al., 2015): a middle layer of the student predicts a middle layer of the teacher.

Formula, after their Eq. 3: mean((r(f_s) - f_t)^2) over batch, channels and positions, for the feature maps f of one
layer. The regressor r is a 1x1 convolution to the teacher's channels with batch norm and ReLU, and is trained. Where
the two maps differ in size, each side of the larger is average-pooled to the smaller's; the paper has a convolution
with a larger kernel there. The paper trains the layers up to the hint first and the whole student afterwards. Instead,
all is trained at once, as in CRD's code (Tian et al., 2020), which has the mean in place of half the sum, and the
batch norm.

Settings: layer (default 2), the position of the feature map in the models' lists, from 0. The usual weight is 100.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.methods.losses import LossInputs
from kdflow.models.features import Outputs, match_spatial_size

NEEDS_FEATURES = True


class Hint(nn.Module):
    """Mean squared error of the regressor of one layer."""

    def __init__(self, student_channels: int, channels: int, layer: int) -> None:
        super().__init__()
        self.layer = layer
        convolution = nn.Conv2d(student_channels, channels, kernel_size=1)
        self.regressor = nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight."""
        maps = (inputs.student.maps[self.layer], inputs.teacher.maps[self.layer].detach())
        student, teacher = match_spatial_size(*maps)
        return F.mse_loss(self.regressor(student), teacher)


def build(
    student: Outputs,
    teacher: Outputs,
    labels: Int64[Tensor, " n"],  # noqa: ARG001
    *,
    layer: int = 2,
) -> Hint:
    """Return a fresh regressor, drawn from torch's global generator.

    Raises:
        ValueError: a model has no feature map at `layer`.
    """
    for role, outputs in (("student", student), ("teacher", teacher)):
        if isinstance(layer, bool) or layer not in range(len(outputs.maps)):
            raise ValueError(
                f"layer: must be a position, from 0, in the list of the {role}'s {len(outputs.maps)} features in "
                f"recipes/models.yaml, not {layer}; set it in loss.options"
            )
    return Hint(student.maps[layer].shape[1], teacher.maps[layer].shape[1], layer)
