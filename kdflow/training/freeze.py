"""A backbone whose weights are kept for the first epochs, while the head is trained."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from kdflow.config import RunSettings
from kdflow.core.errors import UserError
from kdflow.models.initial import head_names
from kdflow.training.distributed import world_size


class Backbone:
    """All layers of the student but its head.

    Raises:
        UserError: several processes compute the run: torch averages the gradients of all weights or of none.
    """

    def __init__(self, run: RunSettings, student: nn.Module) -> None:
        if world_size() > 1:
            raise UserError("params.yaml: compute.processes_per_run: must be 1 with freeze_backbone")
        head = head_names(run.architecture, run.model, run.classes, run.image_size)
        self.student, self.epochs = student, run.training.freeze_backbone or 0
        self.parameters = [parameter for name, parameter in student.named_parameters() if name not in head]
        self.hooks: list[RemovableHandle] = []

    def begin(self, epoch: int) -> None:
        """Freeze or train the backbone in the 0-based `epoch`. Frozen batch norm keeps its running statistics."""
        frozen = epoch < self.epochs
        for parameter in self.parameters:
            parameter.requires_grad_(not frozen)
        if frozen and not self.hooks:
            norms = [module for module in self.student.modules() if isinstance(module, _BatchNorm)]
            self.hooks = [norm.register_forward_pre_hook(_use_running_statistics) for norm in norms]
        if not frozen:
            for hook in self.hooks:
                hook.remove()
            self.hooks = []
            self.student.train()


def _use_running_statistics(norm: nn.Module, _inputs: object) -> None:
    norm.eval()
