"""int8 weights and activations with ranges fixed in advance."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import Field

from tasks.activation_ranges import Method, activation_ranges, quantizable, unbounded
from tasks.compensation import Equalized, bias_corrected, equalized
from tasks.errors import CompressionError
from tasks.exporters.onnx import shorten, strip
from tasks.onnx_layers import MATRIX, prepared, quiet
from tasks.quantization_report import Quantized, report
from tasks.quantizers import Quantizer

BITS = 8
LARGEST_7_BITS, LARGEST_8_BITS = 64, 127  # as onnxruntime.quantization counts them


class StaticInt8(Quantizer):
    """Post-training quantization for ONNX Runtime (Jacob et al. 2018, arXiv:1712.05877).

    Unsigned activations and signed weights: signed ones on both sides ran slower than float on x86.
    x86 processors without VNNI add two products of such bytes in 16 bits, which overflow without a
    word; weights of 7 bits cannot (onnxruntime's `reduce_range`). What touches infinite values (the
    masks of attention) stays in float.

    Attributes:
        calibration_rows: Training rows that the activations' ranges are read from.
        reduce_range: Weights of 7 bits, right on every processor; 8 bits are for devices that are
            known to add in 32 bits.
        per_channel: A scale for every output channel of a weight, instead of one per tensor.
        calibration: How ranges follow from the rows: `min_max`, `percentile`, `entropy` or `mse`
            (see `activation_ranges`).
        percentile: Share of an activation's values that lies inside its range, in percent; of
            `calibration: percentile` alone.
        equalize: Scales the channels between two layers so that both have weights of the same size
            (see `equalized`). It pays with one scale per tensor; with one per channel, hardly.
        correct_bias: Takes each layer's mean error from its bias (see `bias_corrected`); quantizes
            once more for every layer.
    """

    name: Literal["static_int8"] = "static_int8"
    calibration_rows: Annotated[int, Field(ge=1)] = 512
    reduce_range: bool = True
    per_channel: bool = True
    calibration: Method = "min_max"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    equalize: bool = False
    correct_bias: bool = False

    @property
    def weight_limit(self) -> int:
        """See `Quantizer.weight_limit`; known of weights with a scale per channel."""
        if not self.per_channel:
            return 0
        return LARGEST_7_BITS if self.reduce_range else LARGEST_8_BITS

    def quantize(self, source: Path, target: Path, calibration: NDArray[np.float32]) -> None:
        """See `Quantizer.quantize`; the report has the errors with and without compensation."""
        rows = calibration[: self.calibration_rows]
        if not len(rows):
            raise CompressionError(
                "there are no training rows to calibrate int8 ranges on; add rows to data/"
            )
        model = prepared(source)
        _refuse_left_over(model)
        ranges = self._ranges(model, rows)
        plain = self._quantized(model, ranges)
        compensated = None
        if self.equalize or self.correct_bias:
            compensated = self._compensated(model, ranges, rows)
        chosen = onnx.ModelProto()
        chosen.CopyFrom((compensated or plain).model)
        onnx.save(shorten(strip(chosen)), target)
        size = target.stat().st_size
        report(self.plain(), model, plain, compensated, rows, size).write(target.parent)

    def _ranges(self, model: onnx.ModelProto, rows: NDArray[Any]) -> Any:  # noqa: ANN401
        return activation_ranges(model, rows, self.calibration, self.percentile)

    def _compensated(
        self,
        model: onnx.ModelProto,
        ranges: Any,  # noqa: ANN401
        rows: NDArray[Any],
    ) -> Quantized:
        start = Equalized(model)
        if self.equalize:
            start = equalized(model)
            ranges = self._ranges(start.model, rows)
        better = start.model
        if self.correct_bias:
            better = bias_corrected(better, lambda found: self._int8(found, ranges), rows)
        return self._quantized(better, ranges, start)

    def _quantized(
        self,
        model: onnx.ModelProto,
        ranges: Any,  # noqa: ANN401
        start: Equalized | None = None,
    ) -> Quantized:
        return Quantized(
            model=self._int8(model, ranges),
            bits=BITS,
            value=lambda weight: f"{weight}_DequantizeLinear_Output",
            parts=lambda weight: [
                f"{weight}_{part}" for part in ("quantized", "scale", "zero_point")
            ],
            equalized=start,
            activations="fixed ranges",
        )

    def _int8(self, model: onnx.ModelProto, ranges: Any) -> onnx.ModelProto:  # noqa: ANN401
        """The graph in ONNX's QDQ form."""
        from onnxruntime import quantization  # noqa: PLC0415 - slow to import

        # The quantizer writes into all that it is given.
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        wild = unbounded(ranges)
        own = quantization.TensorsData(
            ranges.calibration_method,
            {name: found for name, found in ranges.items() if name not in wild},
        )
        with quiet():
            quantizer = quantization.QDQQuantizer(
                copy,
                self.per_channel,
                self.reduce_range,
                quantization.QuantType.QInt8,
                quantization.QuantType.QUInt8,
                own,
                [],
                _named(copy, wild),
                quantizable(),
                {},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        return quantizer.model.model


def _named(model: onnx.ModelProto, values: set[str]) -> list[str]:
    """Names of the nodes that read or make one of these values; gives a name to those without."""
    found = [node for node in model.graph.node if values & {*node.input, *node.output}]
    for node in found:
        node.name = node.name or f"makes {node.output[0]}"
    return [node.name for node in found]


def _refuse_left_over(model: onnx.ModelProto) -> None:
    """Refuses an operator that would keep its weights in float and not say so."""
    weights = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= MATRIX
    }
    known = {*quantizable()}
    for node in model.graph.node:
        kept = [name for name in node.input if name in weights]
        if kept and node.op_type not in known:
            raise CompressionError(
                f"the operator {node.op_type} (node '{node.name}', weight '{kept[0]}') cannot be "
                "quantized to static int8; take another network, or the method codebook"
            )
