"""ONNX, for ONNX Runtime."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.compute import laid_out
from tasks.errors import CompressionError
from tasks.exporters import Exporter, difference, failed, logits_of

INPUT, OUTPUT = "inputs", "logits"


class Onnx(Exporter):
    """One file with the weights inside and a free batch size.

    Attributes:
        opset: Version of the operator set.
        tolerance: Largest difference from the eager logits, relative to their largest value.
    """

    suffix: ClassVar[str] = ".onnx"

    name: Literal["onnx"] = "onnx"
    opset: Annotated[int, Field(ge=18, le=23)] = 20
    tolerance: Annotated[float, Field(gt=0)] = 1e-4

    def export(self, network: nn.Module, example: Tensor, path: Path) -> float:
        """See `Exporter.export`."""
        network = laid_out(network, torch.contiguous_format)
        example = example.contiguous()
        try:
            with _quiet():
                program = torch.onnx.export(
                    network,
                    (example,),
                    dynamo=True,
                    verbose=False,
                    opset_version=self.opset,
                    external_data=False,
                    input_names=[INPUT],
                    output_names=[OUTPUT],
                    dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                )
        except torch.onnx.errors.OnnxExporterError as error:
            raise failed(network, "ONNX", error) from error
        if program is None:
            raise CompressionError(
                f"{type(network).__name__} cannot be exported to ONNX: no program"
            )
        onnx.save(strip(program.model_proto), path)
        eager, exported = logits_of(network, example), run(path, example.numpy())
        return difference(eager, exported, path, self.tolerance)


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Takes out what only debuggers read (source lines, value shapes): a third of a small file."""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for part in [*graph.node, *graph.input, *graph.output, *graph.initializer]:
        part.doc_string = ""
        del part.metadata_props[:]
    used = {node.domain for node in graph.node} | {""}
    imports = [item for item in model.opset_import if item.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    return model


def shorten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Renames all values but the graph's own inputs and outputs to short numbers, in place.

    Quantization makes several names of every layer's, which were a tenth of a ResNet-8's file.
    A graph with graphs inside keeps its names.
    """
    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return model
    kept = {value.name for value in [*graph.input, *graph.output]} | {""}
    names = [tensor.name for tensor in graph.initializer]
    names += [name for node in graph.node for name in [*node.input, *node.output]]
    inner = [name for name in dict.fromkeys(names) if name not in kept]
    short = {name: f"{at:x}" for at, name in enumerate(inner)}
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in graph.node:
        node.name = ""
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
    return model


def run(path: Path, inputs: np.ndarray) -> np.ndarray:
    """A model's outputs on a batch, by ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes on packages that are not needed off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
