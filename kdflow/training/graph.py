"""A training step as one graph: compiled by torch, or captured as a CUDA graph, which launches all kernels at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kdflow.config import RunSettings
from kdflow.core.errors import UserError
from kdflow.training.batches import Batch

WARM_UP = 3  # steps of each epoch before a capture: they create the optimiser's state and choose convolutions


@dataclass(frozen=True)
class StepResult:
    """Results of a step, on the device: its loss, and r of the paper's Eq. 4 if the method picks."""

    loss: Float[Tensor, ""]
    pick_ratio: Float[Tensor, ""] | None


Update = Callable[[Batch, Tensor | None], StepResult]


def compiled(gradients: Update, backend: str = "inductor") -> Update:
    """Return the forward and backward pass as one compiled graph; torch compiles no optimiser within a graph."""
    torch._dynamo.config.trace_autograd_ops = True
    graph: Any = torch.compile(gradients, fullgraph=True, backend=backend)
    return graph  # type: ignore[no-any-return]


class CudaGraph:
    """Captures a step once in each epoch, since the epoch is a constant of a graph, and replays it."""

    def __init__(self, update: Update) -> None:
        self.update, self.epoch, self.steps = update, -1, 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch, draws: Tensor | None) -> StepResult:
        """Take one step."""
        if batch.plan.epoch != self.epoch:
            self.epoch, self.steps, self.graph = batch.plan.epoch, 0, None
        self.steps += 1
        if self.steps <= WARM_UP:
            return self._on_other_stream(batch, draws)
        tensors = _tensors(batch, draws)
        if self.graph is None:
            self.inputs, self.graph = [tensor.clone() for tensor in tensors], torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.result = self.update(*_with_tensors(batch, draws, self.inputs))
        for static, tensor in zip(self.inputs, tensors, strict=True):
            static.copy_(tensor)
        self.graph.replay()
        ratio = self.result.pick_ratio
        return StepResult(self.result.loss.clone(), None if ratio is None else ratio.clone())

    def _on_other_stream(self, batch: Batch, draws: Tensor | None) -> StepResult:
        """Take an eager step; torch requires another stream than the default one before a capture."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self.update(batch, draws)
        torch.cuda.current_stream().wait_stream(stream)
        return result


def _tensors(batch: Batch, draws: Tensor | None) -> list[Tensor]:
    """Return all tensors that a step reads besides weights."""
    plan = batch.plan
    strong = [draw[key] for draw in plan.strong for key in sorted(draw)]
    return [batch.x, batch.labels, plan.index, plan.noise, *strong, *([] if draws is None else [draws])]


def _with_tensors(batch: Batch, draws: Tensor | None, tensors: list[Tensor]) -> tuple[Batch, Tensor | None]:
    """Return the inputs of a step with other tensors, in the order of `_tensors`."""
    x, labels, index, noise, *rest = tensors
    strong = [{key: rest.pop(0) for key in sorted(draw)} for draw in batch.plan.strong]
    plan = replace(batch.plan, index=index, noise=noise, strong=strong)
    return Batch(plan, x, labels), None if draws is None else rest.pop(0)


def check_graph(run: RunSettings, device: torch.device, processes: int) -> None:
    """Refuse a step as one graph where that cannot work.

    Raises:
        UserError: the device, the number of processes, the source of teacher logits or torch's version.
    """
    kind, reason = run.precision.step, None
    if kind == "eager":
        return
    if kind == "cuda_graph" and device.type != "cuda":
        reason = f"needs a CUDA device, and the device is {device}"
    elif processes > 1:
        reason = "needs compute.processes_per_run: 1"
    elif run.teacher is not None and run.teacher_logits != "online":
        reason = "needs teacher_logits: online"
    elif kind == "compile" and not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        reason = f"needs a newer torch than {torch.__version__}"
    if reason is not None:
        raise UserError(f"params.yaml: precision.step: {kind} {reason}; or set step: eager")
