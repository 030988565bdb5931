"""Compensation of quantization errors in an ONNX graph: equalised layers, corrected biases."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tasks.errors import CompressionError
from tasks.onnx_layers import (
    BIASED,
    Layer,
    constant,
    consumers,
    layers,
    observed,
    set_constant,
)

SWEEPS = 50
SETTLED = 1e-4
LARGEST_SCALE = 64.0


@dataclass(frozen=True)
class Equalized:
    """A graph that computes what another does, from other weights.

    Attributes:
        model: The graph.
        outputs: What each output channel of a layer was divided by, by the layer's name.
        inputs: What the weights of each input channel were multiplied by, by the layer's name.
    """

    model: onnx.ModelProto
    outputs: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    inputs: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def original(self, layer: Layer, weight: NDArray[Any]) -> NDArray[Any]:
        """A weight of the new graph, on the scale of the old one."""
        if layer.name in self.outputs:
            weight = weight * layer.along_outputs(self.outputs[layer.name], weight.ndim)
        if layer.name in self.inputs:
            weight = weight / _along_inputs(layer, self.inputs[layer.name], weight)
        return weight


def equalized(model: onnx.ModelProto) -> Equalized:
    """Cross-layer equalisation (Nagel et al. 2019, arXiv:1906.04721, section 4.1).

    Where a Conv or Gemm is read by a Relu alone and that by a Conv or Gemm alone, each channel
    between them is scaled so that both layers' weights of it have the same largest absolute value.
    A Relu of a scaled value is the scaled Relu, so the outputs stay. A channel is scaled by 64 at
    most, so that one that is nearly constant does not fill the activations' range with its bias.

    Raises:
        CompressionError: There is no such pair of layers.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    pairs = _pairs(copy)
    if not pairs:
        raise CompressionError(
            "equalize finds no Conv or Gemm whose Relu is read by one other Conv or Gemm alone; "
            "set quantize.method.equalize to false"
        )
    weights = {
        layer.name: constant(copy, layer.weight).astype(np.float64)
        for pair in pairs
        for layer in pair
    }
    totals = [np.ones(weights[one.name].shape[one.axis]) for one, _ in pairs]
    for _ in range(SWEEPS):
        moved = [_balance(weights, pair, total) for pair, total in zip(pairs, totals, strict=True)]
        if max(moved) < SETTLED:
            break
    for (one, two), total in zip(pairs, totals, strict=True):
        set_constant(copy, one.weight, weights[one.name])
        set_constant(copy, two.weight, weights[two.name])
        if one.bias is not None:
            set_constant(copy, one.bias, constant(copy, one.bias) / total)
    return Equalized(
        copy,
        {one.name: total for (one, _), total in zip(pairs, totals, strict=True)},
        {two.name: total for (_, two), total in zip(pairs, totals, strict=True)},
    )


def _balance(
    weights: dict[str, NDArray[np.float64]], pair: tuple[Layer, Layer], total: NDArray[np.float64]
) -> float:
    """Balances one pair in place; how far its scales moved, as a logarithm."""
    one, two = pair
    first, second = weights[one.name], weights[two.name]
    others = tuple(at for at in range(first.ndim) if at != one.axis)
    largest, following = np.abs(first).max(others), _largest_by_input(two, second)
    live = (largest > 0) & (following > 0)
    scale = np.sqrt(np.divide(largest, following, where=live, out=np.ones_like(largest)))
    scale = np.clip(total * scale, 1 / LARGEST_SCALE, LARGEST_SCALE) / total
    weights[one.name] = first / one.along_outputs(scale, first.ndim)
    weights[two.name] = second * _along_inputs(two, scale, second)
    total *= scale
    return float(np.abs(np.log(scale)).max())


def _pairs(model: onnx.ModelProto) -> list[tuple[Layer, Layer]]:
    readers = consumers(model)
    outputs = {value.name for value in model.graph.output}
    found = [one for one in layers(model) if one.operator in BIASED and _is_own(one, readers)]
    pairs: list[tuple[Layer, Layer]] = []
    for one in found:
        after = readers.get(one.output, [])
        if len(after) != 1 or after[0].op_type != "Relu" or one.output in outputs:
            continue
        between = after[0].output[0]
        if len(readers.get(between, [])) == 1 and between not in outputs:
            pairs += [(one, two) for two in found if two.inputs == between]
    return pairs


def _is_own(layer: Layer, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether no other node reads the layer's weight or bias."""
    return all(len(readers[name]) == 1 for name in (layer.weight, layer.bias) if name is not None)


def _largest_by_input(layer: Layer, weight: NDArray[Any]) -> NDArray[Any]:
    """Largest absolute weight of each input channel, (channels,)."""
    if layer.operator == "Gemm":
        return np.abs(weight).max(layer.axis)
    grouped = np.abs(weight).reshape(layer.groups, -1, *weight.shape[1:])
    return grouped.max((1, *range(3, grouped.ndim))).ravel()


def _along_inputs(layer: Layer, scale: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
    """A value per input channel, shaped so that it multiplies the weight."""
    if layer.operator == "Gemm":
        return np.expand_dims(scale, layer.axis)
    by_group = scale.reshape(layer.groups, -1)
    by_output = np.repeat(by_group, weight.shape[0] // layer.groups, axis=0)
    return by_output.reshape(*by_output.shape, *(1 for _ in weight.shape[2:]))


def bias_corrected(
    model: onnx.ModelProto,
    quantize: Callable[[onnx.ModelProto], onnx.ModelProto],
    rows: NDArray[Any],
) -> onnx.ModelProto:
    """Empirical bias correction (Nagel et al. 2019, arXiv:1906.04721, appendix D).

    Layer by layer, in the graph's order: the mean difference of each output channel between the
    quantized graph, with all layers before corrected, and the float one is taken from the bias.
    A Conv or Gemm without a bias is given one.

    Args:
        model: The float graph.
        quantize: Quantizes a float graph with the same names; ranges must stay as they are.
        rows: Calibration rows, (N, …).

    Returns:
        The float graph with other biases.
    """
    corrected = _with_biases(model)
    biased = [layer for layer in layers(corrected) if layer.bias is not None]
    wanted = channel_means(model, [layer.output for layer in biased], rows)
    for layer, expected in zip(biased, wanted, strict=True):
        quantized = quantize(corrected)
        (found,) = channel_means(quantized, [output_in(quantized, layer)], rows)
        bias = constant(corrected, str(layer.bias))
        set_constant(corrected, str(layer.bias), bias - (found - expected))
    return corrected


def output_in(quantized: onnx.ModelProto, layer: Layer) -> str:
    """The name that a float layer's output, before any activation, has in a quantized graph.

    An activation that the unsigned range does the work of is gone, and its output is the layer's.
    """
    made = {name for node in quantized.graph.node for name in node.output}
    return layer.output if layer.output in made or layer.activated is None else layer.activated


def channel_means(
    model: onnx.ModelProto, names: list[str], rows: NDArray[Any]
) -> list[NDArray[np.float64]]:
    """Mean of each channel (the second axis) of the named values over the rows."""
    sums: list[Any] = [0.0] * len(names)
    counts = [0] * len(names)
    for values in observed(model, names, rows):
        for at, name in enumerate(names):
            others = tuple(axis for axis in range(values[name].ndim) if axis != 1)
            sums[at] = sums[at] + values[name].sum(others, dtype=np.float64)
            counts[at] += values[name].size // values[name].shape[1]
    return [total / count for total, count in zip(sums, counts, strict=True)]


def _with_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = {node.output[0]: node for node in copy.graph.node}
    for layer in layers(copy):
        if layer.operator in BIASED and layer.bias is None:
            count = constant(copy, layer.weight).shape[layer.axis]
            name = f"{layer.output}_bias"
            zeros = numpy_helper.from_array(np.zeros(count, np.float32), name)
            copy.graph.initializer.append(zeros)
            node = nodes[layer.output]
            node.input[:] = [*node.input[:2], name]
    return copy
