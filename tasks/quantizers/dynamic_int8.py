"""8-bit weights, and activations whose ranges are read from each batch."""

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tasks.exporters.onnx import shorten, strip
from tasks.onnx_layers import Layer, constant, layers, prepared, quiet
from tasks.quantization_report import Quantized, report
from tasks.quantizers import Quantizer

BITS = 8


class DynamicInt8(Quantizer):
    """Dynamic quantization for ONNX Runtime, which reads no training rows but for its report.

    Embedding tables shrink too. Both sides of a product are unsigned: signed weights saturate on
    x86 without VNNI, so that answers change with the machine and err ten times as far.

    Attributes:
        per_channel: A scale for every output channel of a linear layer, instead of one per tensor.
            Embedding tables and convolutions always have one per tensor.
    """

    name: Literal["dynamic_int8"] = "dynamic_int8"
    per_channel: bool = True

    def quantize(self, source: Path, target: Path, calibration: NDArray[np.float32]) -> None:
        """See `Quantizer.quantize`; the rows, which may be none, serve the report alone."""
        model = prepared(source)
        small = self._int8(model)
        written = onnx.ModelProto()
        written.CopyFrom(small)
        onnx.save(shorten(strip(written)), target)
        found = Quantized(
            _telling(small, layers(model)),
            BITS,
            value=_value,
            parts=_parts,
            activations="ranges of each batch",
        )
        size = target.stat().st_size
        report(self.plain(), model, found, None, calibration, size).write(target.parent)

    def _int8(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The graph with integer products, and the float graph's names."""
        from onnxruntime import quantization  # noqa: PLC0415 - slow to import

        with tempfile.TemporaryDirectory() as folder, quiet():
            ready, target = Path(folder) / "ready.onnx", Path(folder) / "model.onnx"
            onnx.save(model, ready)
            quantization.quantize_dynamic(
                ready,
                target,
                weight_type=quantization.QuantType.QUInt8,
                per_channel=self.per_channel,
            )
            return onnx.load(target)


def _value(weight: str) -> str:
    return f"{weight}_told"


def _parts(weight: str) -> list[str]:
    return [f"{weight}_{part}" for part in ("quantized", "scale", "zero_point")]


def _telling(small: onnx.ModelProto, found: list[Layer]) -> onnx.ModelProto:
    """A copy of a quantized graph with nodes that make its integers float again, for the report.

    Integer products never do that to their weights, nor tables to what is looked up for one.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(small)
    stored = {tensor.name for tensor in copy.graph.initializer}
    made = {name for node in copy.graph.node for name in node.output}
    for layer in found:
        weight, *scale = parts = _parts(layer.weight)
        if not stored.issuperset(parts):
            continue
        last = constant(copy, weight).ndim - 1
        copy.graph.node.extend(_floating(layer, parts, last))
        if layer.output not in made:
            looked_up = [f"{layer.output}_quantized", *scale]
            copy.graph.node.append(helper.make_node("DequantizeLinear", looked_up, [layer.output]))
    return copy


def _floating(layer: Layer, parts: list[str], last: int) -> list[onnx.NodeProto]:
    """Nodes that make a weight float, as it stood: ONNX Runtime turns a Gemm into a MatMul."""
    told = _value(layer.weight)
    if layer.operator != "Gemm" or layer.axis:
        return [helper.make_node("DequantizeLinear", parts, [told], axis=last)]
    turned = f"{told}_turned"
    return [
        helper.make_node("DequantizeLinear", parts, [turned], axis=last),
        helper.make_node("Transpose", [turned], [told]),
    ]
