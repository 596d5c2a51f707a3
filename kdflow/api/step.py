"""The loss of a method for one batch, for a training loop outside of kdflow."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from kdflow.api.distill import make_loss
from kdflow.api.settings import AS_IT_IS, Layers, architecture, find_method, find_training, run_settings
from kdflow.config import Method
from kdflow.core.errors import UserError
from kdflow.training import distributed
from kdflow.training.batches import Batch
from kdflow.training.epoch_plan import draw_plan
from kdflow.training.run import teacher_extractor
from kdflow.training.step import BatchLoss, StudentWithLoss
from kdflow.training.teacher_logits import Online


class DistillationStep(nn.Module):
    """The loss of a method as a module: `step(x, labels)` makes the strong views, runs the teacher and picks.

    The caller computes gradients and updates. `step.parameters()` are those of the student and of the method's extra
    loss. The teacher is set to eval mode. It works in one process, without torch.distributed.

    Args:
        student: the model to train; returns logits.
        teacher: the trained model; None if the method needs none.
        method: a name of `list_methods()`, or a `Method`.
        epochs: number of epochs, for losses that change along training.
        seed: the seed of the strong views, which also depend on the number of calls.
        train_labels: labels of all training images. Needed with an extra loss, like the next two.
        image_size: side of the images in pixels.
        student_layers: layers of the student, for a method that compares features.
        teacher_layers: layers of the teacher, for such a method.

    Raises:
        UserError: the method does not fit the models.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        method: str | Method = "kd_tlcutmix_pick",
        *,
        epochs: int = 1,
        seed: int = 0,
        train_labels: Tensor | None = None,
        image_size: int | None = None,
        student_layers: Layers | None = None,
        teacher_layers: Layers | None = None,
    ) -> None:
        super().__init__()
        settings = find_method(method)
        if settings.loss is not None and (train_labels is None or image_size is None):
            raise UserError(f"train_labels and image_size: needed by the loss {settings.loss.name}")
        self.calls = 0
        run = run_settings(
            architecture(student, student_layers),
            None if teacher is None else architecture(teacher, teacher_layers),
            settings,
            find_training({"epochs": epochs}),
            seed,
            classes=0 if train_labels is None else int(train_labels.max()) + 1,
            image_size=image_size or 0,
        )
        self.run, source = run, None
        if teacher is not None and run.teacher is not None:
            source = Online(teacher_extractor(run, teacher.eval()))
        loss = None if train_labels is None else make_loss(run, student, teacher, train_labels)
        self.learner = StudentWithLoss(student, loss, run.training)
        self._batch_loss = BatchLoss(run, self.learner, source)

    def forward(self, x: Tensor, labels: Tensor, index: Tensor | None = None, epoch: int = 0) -> Tensor:
        """Return the loss of a batch.

        Args:
            x: the images [b, 3, size, size], augmented and normalised.
            labels: their classes [b].
            index: their indices in the training set; only crd needs it.
            epoch: the 0-based epoch.

        Raises:
            UserError: torch.distributed is initialised with more than one process, or the batch is too small.
        """
        if distributed.world_size() > 1:
            raise UserError("DistillationStep: works in one process; `kdflow distill` and dvc.yaml support several")
        strong = self.run.method.strong
        plan = draw_plan(self.run.seed, self.calls, len(x), len(x), x.shape[-1], AS_IT_IS, strong, x.device)
        self.calls += 1
        step_plan = replace(next(iter(plan)), epoch=epoch)
        if index is not None:
            step_plan = replace(step_plan, index=index.to(x.device))
        batch = Batch(step_plan, x, labels)
        return self._batch_loss.batch_loss(batch, self._batch_loss.draws(batch))[0]

    @property
    def student(self) -> nn.Module:
        """The student."""
        return self.learner.student

    def get_extra_state(self) -> int:
        """Return the number of calls, which the next views depend on, for `state_dict`."""
        return self.calls

    def set_extra_state(self, state: int) -> None:
        """Restore the number of calls."""
        self.calls = state
