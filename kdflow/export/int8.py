"""ONNX files in 8-bit integers: onnxruntime's static quantisation, calibrated on training images.

Weights have one scale per output channel, activations one per tensor, from the least and the largest value that the
calibration images give. The normalisation of the input and the sums before the last layer stay in float32.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kdflow.config import BaseView, Settings
from kdflow.core.errors import UserError, one_line
from kdflow.data import Images
from kdflow.export.card import METADATA_KEY, ModelCard
from kdflow.export.formats import Runner
from kdflow.models.onnx_runtime import require
from kdflow.training.evaluate import BATCH, topk_accuracy

CALIBRATION_IMAGES = 512
QUANTISED = ["Add", "Conv", "Gemm", "MatMul"]


class Quantisation(Settings):
    """The accuracy of both files on all test images: top-1 in percent.

    `calibration_images` is the number of training images that the scales come from.
    """

    calibration_images: int
    test_images: int
    top1: float
    float32_top1: float

    def __str__(self) -> str:
        return (
            f"int8 has {self.top1:.2f} % top-1 accuracy on {self.test_images:,} test images, float32 "
            f"{self.float32_top1:.2f} % ({self.top1 - self.float32_top1:+.2f}); calibrated on "
            f"{self.calibration_images:,} training images"
        )


def quantise(source: Path, out: Path, images: Images, base_view: BaseView) -> None:
    """Write the ONNX file `source` in 8-bit integers to `out`.

    Args:
        source: a file that `kdflow.export.formats.onnx` wrote.
        out: the file to write.
        images: training images that the scales of the activations come from.
        base_view: the settings of their evaluation.

    Raises:
        UserError: a package is missing, or onnxruntime cannot quantise the model.
    """
    require("onnx", "onnxruntime")
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        batches: Iterator[torch.Tensor] = iter(images.for_testing(BATCH, base_view, slice(0, len(images))))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.contiguous().numpy()}

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = Path(folder) / "prepared.onnx"
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # onnxruntime prints its progress
                quantization.shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
                quantization.quantize_static(prepared, out, Reader(), per_channel=True, op_types_to_quantize=QUANTISED)
        except UserError:  # an image that cannot be read
            raise
        except Exception as error:  # the type depends on the operator that is not supported
            raise UserError(f"--int8: onnxruntime cannot quantise this model: {one_line(error)[:200]}") from None


def write_card(path: Path, card: ModelCard) -> None:
    """Replace the model card of an ONNX file."""
    import onnx

    proto = onnx.load(path)
    proto.ClearField("metadata_props")
    onnx.helper.set_model_props(proto, {METADATA_KEY: card.model_dump_json()})
    path.write_bytes(proto.SerializeToString())


def compare_accuracy(
    float32: Runner, int8: Runner, test: Images, base_view: BaseView, calibration_images: int
) -> Quantisation:
    """Measure the accuracy of both files on all test images."""
    top1 = {}
    for name, run in (("float32_top1", float32), ("top1", int8)):
        logits = torch.cat([run(batch) for batch in test.for_testing(BATCH, base_view, slice(0, len(test)))])
        top1[name] = topk_accuracy(logits, test).top1
    return Quantisation(calibration_images=calibration_images, test_images=len(test), **top1)
