"""onnxruntime: runs a model on the CPU instead of torch. Its packages are those of the extra `onnx`."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kdflow.core.errors import UserError, one_line
from kdflow.models.precision import Forward


def require(*packages: str) -> None:
    """Check that packages of the extra `onnx` are installed.

    Raises:
        UserError: some are missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)}: not installed; pip install 'kdflow[onnx]'")


def to_onnx(name: str, program: ExportedProgram) -> Any:
    """Convert the exported program of the model `name` to ONNX's `ModelProto`.

    Raises:
        UserError: a package is missing, or ONNX does not support the model.
    """
    require("onnx", "onnxscript", "onnxruntime")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside of the exporter
            exported = torch.onnx.export(program, dynamo=True, verbose=False, external_data=False)
        assert exported is not None
        return exported.model_proto
    except Exception as error:  # the type depends on the operator that is not supported
        raise UserError(f"{name}: ONNX does not support this model: {one_line(error)[:200]}") from None


def new_session(content: bytes, threads: int) -> Any:
    """Return an `InferenceSession` for the content of an ONNX file, on `threads` CPU threads."""
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def onnxruntime_forward(name: str, model: nn.Module, image_size: int) -> Forward:
    """Return a function from images to logits that runs a teacher in onnxruntime, with as many threads as torch.

    Raises:
        UserError: the model is not on the CPU, a package is missing, ONNX does not support the model, or the logits of
            noise differ from torch's by more than 0.1 %.
    """
    setting = "params.yaml: precision.teacher_runtime: onnxruntime"
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise UserError(f"{setting} runs on the CPU only, and the device is {device}; set teacher_runtime: torch")
    x = torch.rand(2, 3, image_size, image_size)
    try:
        require("onnx", "onnxscript", "onnxruntime")
        with torch.no_grad():
            program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("n")},))
        session = new_session(to_onnx(name, program).SerializeToString(), torch.get_num_threads())
    except Exception as error:  # the type depends on the model
        raise UserError(f"{setting}: {name}: {one_line(error)[:200]}") from None
    (source,), (result,) = session.get_inputs(), session.get_outputs()

    def forward(x: Tensor) -> Tensor:
        (logits,) = session.run([result.name], {source.name: x.contiguous().numpy()})
        return torch.from_numpy(logits)

    with torch.no_grad():
        expected = model(x)
    difference = (forward(x) - expected).abs().max().item()
    if not difference <= 1e-3 * expected.abs().max().item():
        raise UserError(f"{setting}: the logits of {name} change by {difference:g}; set teacher_runtime: torch")
    return forward
