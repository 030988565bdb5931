"""The layers of an ONNX graph: nodes that multiply by a float weight, and what flows between them.

Quantizers read and change graphs through this module.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from tasks.errors import CompressionError

BATCH = 64
WEIGHT_AT = {"Conv": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
BIAS_AT = 2
BIASED = ("Conv", "Gemm")
ACTIVATIONS = ("Relu", "Clip")
MATRIX = 2
DOMAINS = ("", "ai.onnx", "com.microsoft")


@dataclass(frozen=True)
class Layer:
    """A node with a float weight of its own.

    Attributes:
        name: The weight's name without `.weight`, for example `body.0`.
        operator: `Conv`, `Gemm`, `MatMul` or `Gather`.
        weight: Name of the weight.
        bias: Name of the bias, or None.
        inputs: Name of the values that it multiplies; of a `Gather`, that it looks up.
        output: Name of its output.
        activated: Name of the output of the activation that follows, or None.
        axis: The weight's axis that counts output channels.
        groups: Groups of a convolution, else 1.
    """

    name: str
    operator: str
    weight: str
    bias: str | None
    inputs: str
    output: str
    activated: str | None
    axis: int
    groups: int

    def along_outputs(self, channels: NDArray[Any], dimensions: int) -> NDArray[Any]:
        """A value per output channel, shaped so that it multiplies a weight of so many axes."""
        return channels.reshape([-1 if at == self.axis else 1 for at in range(dimensions)])


def layers(model: onnx.ModelProto) -> list[Layer]:
    """Every node with a float weight of two axes or more, in the graph's order."""
    weights = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= MATRIX
    }
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    readers = consumers(model)
    found: list[Layer] = []
    for node in model.graph.node:
        at = WEIGHT_AT.get(node.op_type)
        if at is not None and node.input[at] in weights:
            found.append(_layer(node, at, ranks[node.input[at]], readers))
    return found


def _layer(
    node: onnx.NodeProto, at: int, rank: int, readers: dict[str, list[onnx.NodeProto]]
) -> Layer:
    settings = {
        item.name: item.i for item in node.attribute if item.type == onnx.AttributeProto.INT
    }
    first = node.op_type == "Conv" or settings.get("transB") == 1
    biased = node.op_type in BIASED and len(node.input) > BIAS_AT and bool(node.input[BIAS_AT])
    after = readers.get(node.output[0], [])
    activated = len(after) == 1 and after[0].op_type in ACTIVATIONS
    return Layer(
        name=node.input[at].removesuffix(".weight"),
        operator=node.op_type,
        weight=node.input[at],
        bias=node.input[BIAS_AT] if biased else None,
        inputs=node.input[1 - at],
        output=node.output[0],
        activated=after[0].output[0] if activated else None,
        axis=0 if first else rank - 1,
        groups=settings.get("group", 1),
    )


def consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each value, by its name, once for every time they read it."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def constant(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    """A stored tensor of the graph, by name."""
    return numpy_helper.to_array(_stored(model, name))


def set_constant(model: onnx.ModelProto, name: str, value: NDArray[Any]) -> None:
    """Gives a stored tensor other values of the same type, in place."""
    tensor = _stored(model, name)
    dtype = numpy_helper.to_array(tensor).dtype
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))


def _stored(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def prepared(source: Path) -> onnx.ModelProto:
    """A float model as quantizers take it: normalisation folded into weights, shapes inferred.

    Raises:
        CompressionError: An operator is unknown, or there is no weight to quantize; names it.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    _refuse_unknown(onnx.load(source))
    with tempfile.TemporaryDirectory() as folder, quiet():
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(source, ready)
        model = onnx.load(ready)
    if not layers(model):
        raise CompressionError(
            f"{source.name} has no float weights to quantize (of Conv, Gemm, MatMul or Gather); "
            "take a network with layers, not yet quantized"
        )
    return model


def _refuse_unknown(model: onnx.ModelProto) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        standard = node.domain in DOMAINS and (node.domain or onnx.defs.has(node.op_type))
        if not standard and (node.domain, node.op_type) not in own:
            kind = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
            raise CompressionError(
                f"the operator {kind} (node '{node.name}', output '{node.output[0]}') is not one "
                "of ONNX's and cannot be quantized; take a network without it"
            )


def observed(
    model: onnx.ModelProto, names: list[str], rows: NDArray[Any]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Values inside a graph, batch by batch, computed without any optimisation.

    Args:
        model: The graph.
        names: Which values: inputs, outputs or any between.
        rows: As the graph takes them, (N, …).

    Yields:
        The values by name.
    """
    source = model.graph.input[0].name
    inside = [name for name in dict.fromkeys(names) if name != source]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    watched.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in inside if name not in known
    )
    session = plain_session(watched.SerializeToString())
    for batch in batches(rows):
        found = session.run(inside, {source: batch}) if inside else []
        yield {source: batch, **dict(zip(inside, map(np.asarray, found), strict=True))}


def plain_session(model: bytes | str) -> onnxruntime.InferenceSession:
    """A model, or the file that holds it, as it stands: no node is fused, moved or left out."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def batches(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Rows, 64 at a time."""
    for at in range(0, len(rows), BATCH):
        yield rows[at : at + BATCH]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps ONNX Runtime's advice to pre-process, which was followed, off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
