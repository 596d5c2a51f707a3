"""ONNX: one file for any runtime. Normalisation is inside the graph, the number of images is free.

The card is in the model's `metadata_props`, as JSON under `kdflow`. Read and run by onnxruntime alone, which runs no
code of a file and is handed its bytes, so that the file cannot name another one.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdflow.core.errors import UserError, one_line
from kdflow.export.card import METADATA_KEY, Card
from kdflow.export.formats import Runner, exported_program, require

SUFFIX = ".onnx"


def write(model: nn.Module, card: Card, path: Path) -> None:
    """Write the model to `path`.

    Raises:
        UserError: a package is missing, or ONNX has no words for the model.
    """
    require("onnx", "onnxscript", "onnxruntime")
    import onnx

    graph = exported_program(model, card)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own future
            exported = torch.onnx.export(graph, dynamo=True, verbose=False, external_data=False)
        assert exported is not None
        proto = exported.model_proto
    except Exception as error:  # an operator that it does not know fails in any way it likes
        raise UserError(f"{card.settings.architecture}: no ONNX of it: {one_line(error)[:200]}") from None
    _name(proto)
    onnx.helper.set_model_props(proto, {METADATA_KEY: card.model_dump_json()})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def _name(proto: Any) -> None:
    """Name input, output and their first dimension; leave out what torch notes of its source files and shapes."""
    graph = proto.graph
    named = {graph.input[0].name: "images", graph.output[0].name: "logits"}
    for node in graph.node:
        node.ClearField("metadata_props")
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = named.get(name, name)
    for value in (*graph.input, *graph.output):
        value.name = named[value.name]
        value.ClearField("metadata_props")
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    for part in (proto, graph):
        part.ClearField("metadata_props")
    graph.ClearField("value_info")


def read(path: Path) -> str | None:
    """The card's text."""
    text: str | None = _session(path, 1).get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    return text


def runner(path: Path, card: Card, threads: int) -> Runner:
    """The model in onnxruntime, on the CPU.

    Raises:
        UserError: it does not take and give what its card says; likewise when it is run.
    """
    session, size = _session(path, threads), card.settings.image_size
    ends = [(end.name, end.type, list(end.shape)[1:]) for end in (*session.get_inputs(), *session.get_outputs())]
    said = [
        ("images", "tensor(uint8)", [3, size, size]),
        ("logits", "tensor(float)", [card.settings.classes]),
    ]
    if ends != said:
        raise UserError(f"{path}: takes and gives {ends}, its card says {said}"[:500])

    def run(images: Tensor) -> Tensor:
        try:
            (logits,) = session.run(["logits"], {"images": images.contiguous().numpy()})
        except Exception as error:  # a graph from elsewhere fails in any way it likes
            raise UserError(f"{path}: onnxruntime cannot run it: {one_line(error)[:200]}") from None
        return torch.from_numpy(logits)

    return run


def _session(path: Path, threads: int) -> Any:
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except OSError:
        raise
    except Exception as error:  # a damaged file fails in any way it likes
        raise UserError(f"{path}: onnxruntime cannot read it: {one_line(error)[:200]}") from None
