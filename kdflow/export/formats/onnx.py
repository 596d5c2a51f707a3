"""The ONNX format: a file for any ONNX runtime. The graph includes the normalisation and takes any number of images.

The model card is JSON in the model's `metadata_props`, with the key `kdflow`. Files are read and run by onnxruntime,
which runs no code from a file. It gets the file's bytes instead of its path, so that the file cannot refer to others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdflow.core.errors import UserError, one_line
from kdflow.export.card import METADATA_KEY, ModelCard
from kdflow.export.formats import Runner, exported_program
from kdflow.models.onnx_runtime import new_session, require, to_onnx

SUFFIX = ".onnx"


def write(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Write the model to `path`.

    Raises:
        UserError: a package is missing, or ONNX does not support the model.
    """
    proto = to_onnx(card.settings.architecture, exported_program(model, card))
    import onnx

    _clean(proto)
    onnx.helper.set_model_props(proto, {METADATA_KEY: card.model_dump_json()})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def _clean(proto: Any) -> None:
    """Name input, output and batch dimension; remove the notes that torch makes of source files and shapes."""
    graph = proto.graph
    new_names = {graph.input[0].name: "images", graph.output[0].name: "logits"}
    for node in graph.node:
        node.ClearField("metadata_props")
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = new_names.get(name, name)
    for value in (*graph.input, *graph.output):
        value.name = new_names[value.name]
        value.ClearField("metadata_props")
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    for part in (proto, graph):
        part.ClearField("metadata_props")
    graph.ClearField("value_info")


def read_metadata(path: Path) -> str | None:
    """Read the model card's JSON; None if there is none."""
    text: str | None = _session(path, 1).get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    return text


def runner(path: Path, card: ModelCard, threads: int) -> Runner:
    """Load the model in onnxruntime, on the CPU.

    Raises:
        UserError: input or output differ from the model card. The runner raises it where the model cannot be run.
    """
    session, size = _session(path, threads), card.settings.image_size
    actual = [(end.name, end.type, list(end.shape)[1:]) for end in (*session.get_inputs(), *session.get_outputs())]
    expected = [
        ("images", "tensor(uint8)", [3, size, size]),
        ("logits", "tensor(float)", [card.settings.classes]),
    ]
    if actual != expected:
        raise UserError(f"{path}: its input and output are {actual}, by its model card {expected}"[:500])

    def run(images: Tensor) -> Tensor:
        try:
            (logits,) = session.run(["logits"], {"images": images.contiguous().numpy()})
        except Exception as error:  # a file from others may fail with any exception
            raise UserError(f"{path}: onnxruntime cannot run it: {one_line(error)[:200]}") from None
        return torch.from_numpy(logits)

    return run


def _session(path: Path, threads: int) -> Any:
    require("onnxruntime")
    try:
        return new_session(path.read_bytes(), threads)
    except OSError:
        raise
    except Exception as error:  # a damaged file may fail with any exception
        raise UserError(f"{path}: onnxruntime cannot read it: {one_line(error)[:200]}") from None
