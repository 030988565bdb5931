"""How far each layer of a quantized graph is from the float one's, and what it costs in bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks.compensation import Equalized, output_in
from tasks.onnx_layers import constant, layers, observed

REPORT_FILE = "quantization.json"
DIGITS = 6
Activations = Literal["float", "fixed ranges", "ranges of each batch"]


class LayerError(BaseModel):
    """One layer, float against quantized.

    Attributes:
        layer: Its name.
        operator: Its operator in the float graph.
        bits: Bits that one of its weights takes.
        size_bytes: Bytes of its weights with all that is needed to read them.
        weights_mse: Mean squared error of its weights.
        outputs_mse: Mean squared error of its outputs, before any activation, on the calibration
            rows; the layers before it are quantized too. None without rows.
        compensated_weights_mse: The same of the weights with error compensation, on the scale of
            the float graph; None where there is none.
        compensated_outputs_mse: The same of the outputs.
        float_size_bytes: Bytes of its weights before; None in reports from before that was kept.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    layer: str
    operator: str
    bits: int
    size_bytes: int
    weights_mse: float
    outputs_mse: float | None
    compensated_weights_mse: float | None = None
    compensated_outputs_mse: float | None = None
    float_size_bytes: int | None = None


class QuantizationReport(BaseModel):
    """What lies beside a quantized file as `quantization.json`.

    Attributes:
        method: The quantizer with its parameters.
        size_bytes: Bytes of the quantized file.
        layers: In the graph's order.
        activations: What goes into the layers: `float`; 8 bits with `fixed ranges`, read from the
            calibration rows; or 8 bits with the `ranges of each batch`: those are known in a call
            alone, so that none can be told here, and a layer's outputs err by a little more or less
            in another batch than in those of 64 calibration rows that `outputs_mse` is of. None in
            reports from before that was kept.
        kept_in_float: The layers whose weights stay as they are; None in the same.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    method: dict[str, Any]
    size_bytes: int
    layers: tuple[LayerError, ...]
    activations: Activations | None = None
    kept_in_float: tuple[str, ...] | None = None

    @classmethod
    def read(cls, folder: Path) -> "QuantizationReport":
        """Reads the report in a folder."""
        return cls.model_validate_json((folder / REPORT_FILE).read_bytes())

    def write(self, folder: Path) -> None:
        """Writes the report into a folder."""
        (folder / REPORT_FILE).write_text(self.model_dump_json(indent=2), encoding="utf-8")


@dataclass(frozen=True)
class Quantized:
    """A quantized graph, and where its weights are in it.

    Attributes:
        model: The graph, with the float graph's names.
        bits: Bits that one weight takes.
        value: The name of a weight's dequantized values, by its name in the float graph.
        parts: The names of the stored tensors that these are made of.
        equalized: What was done to the float graph before.
        activations: What goes into the layers, see `QuantizationReport`.
    """

    model: onnx.ModelProto
    bits: int
    value: Callable[[str], str]
    parts: Callable[[str], list[str]]
    equalized: Equalized | None = None
    activations: Activations = "float"


def report(
    method: dict[str, Any],
    source: onnx.ModelProto,
    plain: Quantized,
    compensated: Quantized | None,
    rows: NDArray[Any],
    size_bytes: int,
) -> QuantizationReport:
    """Measures every layer whose weight was quantized.

    Args:
        method: The quantizer with its parameters.
        source: The float graph.
        plain: The quantized graph without error compensation.
        compensated: The same with it, or None.
        rows: Calibration rows, (N, …), perhaps none.
        size_bytes: Bytes of the quantized file.
    """
    chosen = compensated or plain
    stored = {tensor.name for tensor in chosen.model.graph.initializer}
    every = layers(source)
    found = [one for one in every if stored.issuperset(chosen.parts(one.weight))]
    weights, outputs = _weights_mse(source, plain), _outputs_mse(source, plain, rows)
    better = _weights_mse(source, compensated) if compensated else {}
    closer = _outputs_mse(source, compensated, rows) if compensated else {}
    return QuantizationReport(
        method=method,
        size_bytes=size_bytes,
        layers=tuple(
            LayerError(
                layer=one.name,
                operator=one.operator,
                bits=chosen.bits,
                size_bytes=sum(
                    constant(chosen.model, part).nbytes for part in chosen.parts(one.weight)
                ),
                weights_mse=weights[one.name],
                outputs_mse=outputs.get(one.name),
                compensated_weights_mse=better.get(one.name),
                compensated_outputs_mse=closer.get(one.name),
                float_size_bytes=constant(source, one.weight).nbytes,
            )
            for one in found
        ),
        activations=chosen.activations,
        kept_in_float=tuple(one.name for one in every if one not in found),
    )


def _weights_mse(source: onnx.ModelProto, quantized: Quantized) -> dict[str, float]:
    made = {name for node in quantized.model.graph.node for name in node.output}
    found = [one for one in layers(source) if quantized.value(one.weight) in made]
    names = [quantized.value(one.weight) for one in found]
    values = next(observed(quantized.model, names, _one_row(source)))
    errors: dict[str, float] = {}
    for one in found:
        weight = values[quantized.value(one.weight)].astype(np.float64)
        if quantized.equalized is not None:
            weight = quantized.equalized.original(one, weight)
        errors[one.name] = _rounded(np.square(weight - constant(source, one.weight)).mean())
    return errors


def _one_row(model: onnx.ModelProto) -> NDArray[Any]:
    """A row of nothing: weights do not depend on it, but a session must be given one."""
    kind = model.graph.input[0].type.tensor_type
    shape = [1, *(dimension.dim_value or 1 for dimension in kind.shape.dim[1:])]
    return np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _outputs_mse(
    source: onnx.ModelProto, quantized: Quantized, rows: NDArray[Any]
) -> dict[str, float]:
    found = layers(source)
    names = {one.name: output_in(quantized.model, one) for one in found}
    squares, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    floats = observed(source, [one.output for one in found], rows)
    integers = observed(quantized.model, list(names.values()), rows)
    for expected, given in zip(floats, integers, strict=True):
        for one in found:
            values = given[names[one.name]].astype(np.float64)
            scale = quantized.equalized and quantized.equalized.outputs.get(one.name)
            if scale is not None:
                values = values * scale.reshape(-1, *(1 for _ in values.shape[2:]))
            squares[one.name] += float(np.square(values - expected[one.output]).sum())
            counts[one.name] += values.size
    return {name: _rounded(squares[name] / counts[name]) for name in names if counts[name]}


def _rounded(error: float) -> float:
    """Six digits: the rest is what the order of a sum decides."""
    return float(f"{error:.{DIGITS}g}")
