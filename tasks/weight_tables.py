"""Weights stored as a few bits each: positions in a small table, inside a standard ONNX file.

The file holds the positions as planes of bits, eight positions to a byte in each plane, so that any
number of bits packs without a gap. A function of the file itself, written in standard operators,
makes float weights of them; ONNX Runtime folds it away when it loads the file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tasks.errors import CompressionError
from tasks.exporters.onnx import shorten, strip
from tasks.onnx_layers import Layer, constant, layers, prepared
from tasks.quantization_report import Quantized, report

DOMAIN, FUNCTION = "stillmark", "Unpack"
OPSET, IR_VERSION = 18, 8  # the first with BitwiseAnd; the first with functions
BYTE, FLOAT_BYTES, NODE_BYTES = 8, 4, 150


@dataclass(frozen=True)
class SortedValues:
    """Weighted values, sorted and summed up, so that a table's error costs next to nothing.

    Attributes:
        values: Ascending, (N,).
        sums: Of the weights, of weight times value, and of weight times squared value, over all
            values before each, (3, N + 1).
    """

    values: NDArray[np.float64]
    sums: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[Any], weights: NDArray[Any]) -> "SortedValues":
        """Sorts values of any shape; weights have the same."""
        order = np.argsort(values, axis=None, kind="stable")
        found = values.ravel()[order].astype(np.float64)
        weight = weights.ravel()[order].astype(np.float64)
        parts = np.stack([weight, weight * found, weight * found**2])
        return cls(found, np.concatenate([np.zeros((3, 1)), parts.cumsum(1)], axis=1))

    def cells(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """The three sums over the values nearest to each entry of an ascending table, (3, K)."""
        borders = np.searchsorted(self.values, (table[1:] + table[:-1]) / 2)
        return np.diff(self.sums[:, [0, *borders, len(self.values)]], axis=1)

    def error(self, table: NDArray[np.float64]) -> float:
        """Weighted squared error of the values, each as its nearest entry of an ascending table."""
        weights, firsts, squares = self.cells(table)
        return float((squares - 2 * table * firsts + table**2 * weights).sum())


MakeTable = Callable[[SortedValues, int], NDArray[np.float64]]
"""From values within -1 and 1 and a number of entries: an ascending table of so many."""


@dataclass(frozen=True)
class Coded:
    """A weight as positions in a table.

    Attributes:
        at: Position of each value, in the weight's shape.
        table: (2**bits,), ascending.
        scale: What the table's values are multiplied by, per channel or once; multiplies the
            weight as it is.
    """

    at: NDArray[np.uint8]
    table: NDArray[np.float32]
    scale: NDArray[np.float32]


def coded(
    weight: NDArray[Any], layer: Layer, bits: int, make: MakeTable, *, per_channel: bool
) -> Coded:
    """Finds a weight's table, for the least squared error, and the nearest entry of each value."""
    axes = tuple(at for at in range(weight.ndim) if at != layer.axis)
    largest = np.abs(weight).max(axes if per_channel else None)
    scale = np.where(largest > 0, largest, 1).astype(np.float32)
    scale = layer.along_outputs(np.atleast_1d(scale), weight.ndim)
    even = weight / scale
    squared = np.broadcast_to(np.square(scale.astype(np.float64)), even.shape)
    table = make(SortedValues.of(even, squared), 2**bits).astype(np.float32)
    at = np.searchsorted((table[1:].astype(np.float64) + table[:-1]) / 2, even)
    return Coded(at.astype(np.uint8), table, scale)


def packed(at: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Positions as planes of bits, lowest first, (bits, ceil(N / 8), 1).

    Bit k of byte b of a plane belongs to position 8 b + k; the last byte is filled with zeros.
    """
    planes = (at.ravel()[None] >> np.arange(bits, dtype=np.uint8)[:, None]) & 1
    return np.packbits(planes, axis=1, bitorder="little")[:, :, None]


def unpack_function(bits: int, opset: int) -> onnx.FunctionProto:
    """The ONNX function (planes, table, scale, shape) → weight."""

    def known(name: str, value: NDArray[Any]) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))

    make = helper.make_node
    nodes = [
        known("shifts", np.arange(BYTE, dtype=np.uint8)),
        known("one", np.array(1, np.uint8)),
        known("powers", (2 ** np.arange(bits, dtype=np.int32)).reshape(-1, 1, 1)),
        known("first", np.zeros(1, np.int64)),
        known("flat", np.full(1, -1, np.int64)),
        make("BitShift", ["planes", "shifts"], ["shifted"], direction="RIGHT"),
        make("BitwiseAnd", ["shifted", "one"], ["bits"]),
        make("Cast", ["bits"], ["wide"], to=TensorProto.INT32),
        make("Mul", ["wide", "powers"], ["placed"]),
        make("ReduceSum", ["placed", "first"], ["summed"], keepdims=0),
        make("Reshape", ["summed", "flat"], ["filled"]),
        make("ReduceProd", ["shape"], ["count"]),
        make("Slice", ["filled", "first", "count"], ["at"]),
        make("Gather", ["table", "at"], ["found"]),
        make("Reshape", ["found", "shape"], ["shaped"]),
        make("Mul", ["shaped", "scale"], ["weight"]),
    ]
    return helper.make_function(
        DOMAIN,
        FUNCTION,
        ["planes", "table", "scale", "shape"],
        ["weight"],
        nodes,
        [helper.make_opsetid("", opset)],
    )


def quantize_weights(
    method: dict[str, Any],
    source: Path,
    target: Path,
    rows: NDArray[Any],
    bits: int,
    make: MakeTable,
    *,
    per_channel: bool,
) -> None:
    """Writes a copy of an ONNX model whose large weights are coded, and its report.

    Args:
        method: The quantizer with its parameters, for the report.
        source: The float model.
        target: File to write.
        rows: What layers are compared on, perhaps none.
        bits: Bits of a position, 2 to 8.
        make: Makes a weight's table.
        per_channel: Every output channel is scaled to 1 first.

    Raises:
        CompressionError: No weight would be smaller, or see `prepared`.
    """
    model = prepared(source)
    large = {one.weight: one for one in layers(model) if _pays(model, one, bits, per_channel)}
    opset = next(item.version for item in model.opset_import if not item.domain)
    if not large or opset < OPSET:
        raise CompressionError(
            f"{source.name} has no weight that {bits}-bit tables make smaller (opset {opset}, at "
            f"least {OPSET} is needed); take static_int8, or fewer bits"
        )
    small = onnx.ModelProto()
    small.CopyFrom(model)
    for layer in large.values():
        weight = constant(model, layer.weight)
        _replace(
            small,
            layer.weight,
            coded(weight, layer, bits, make, per_channel=per_channel),
            bits,
        )
    small.functions.append(unpack_function(bits, opset))
    small.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    small.ir_version = max(small.ir_version, IR_VERSION)
    found = Quantized(small, bits, value=lambda weight: weight, parts=_parts)
    written = onnx.ModelProto()
    written.CopyFrom(small)
    onnx.save(shorten(strip(written)), target)
    report(method, model, found, None, rows, target.stat().st_size).write(target.parent)


def _pays(model: onnx.ModelProto, layer: Layer, bits: int, per_channel: bool) -> bool:  # noqa: FBT001
    weight = constant(model, layer.weight)
    scales = weight.shape[layer.axis] if per_channel else 1
    table = FLOAT_BYTES * (2**bits + scales)
    return bits * -(-weight.size // BYTE) + table + NODE_BYTES < weight.nbytes


def _parts(weight: str) -> list[str]:
    return [f"{weight}_{part}" for part in ("planes", "table", "scale", "shape")]


def _replace(model: onnx.ModelProto, weight: str, code: Coded, bits: int) -> None:
    """Puts a node that makes a weight in the place of the stored one."""
    graph = model.graph
    kept = [tensor for tensor in graph.initializer if tensor.name != weight]
    values = [packed(code.at, bits), code.table, code.scale, np.asarray(code.at.shape, np.int64)]
    names = _parts(weight)
    stored = [
        numpy_helper.from_array(value, name) for name, value in zip(names, values, strict=True)
    ]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *stored])
    graph.node.insert(0, helper.make_node(FUNCTION, names, [weight], domain=DOMAIN))
