"""8-bit weights, and activations whose ranges are read from each batch."""

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from tasks.exporters.onnx import shorten, strip
from tasks.onnx_layers import quiet
from tasks.quantizers import Quantizer


class DynamicInt8(Quantizer):
    """Dynamic quantization for ONNX Runtime, which reads no training rows.

    Embedding tables shrink too. Both sides of a product are unsigned: signed weights saturate on
    x86 without VNNI, so that answers change with the machine and err ten times as far.

    Attributes:
        per_channel: A scale for every output channel of a weight, instead of one per tensor.
            Embedding tables always have one.
    """

    name: Literal["dynamic_int8"] = "dynamic_int8"
    per_channel: bool = True

    def quantize(
        self,
        source: Path,
        target: Path,
        calibration: NDArray[np.float32],  # noqa: ARG002
    ) -> None:
        """See `Quantizer.quantize`; the calibration rows play no part."""
        from onnxruntime import quantization  # noqa: PLC0415 - slow to import
        from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

        with tempfile.TemporaryDirectory() as folder, quiet():
            ready = Path(folder) / "ready.onnx"
            quant_pre_process(source, ready)
            quantization.quantize_dynamic(
                ready,
                target,
                weight_type=quantization.QuantType.QUInt8,
                per_channel=self.per_channel,
            )
        onnx.save(shorten(strip(onnx.load(target))), target)
