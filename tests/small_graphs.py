"""ONNX graphs of a few layers, made without torch in no time."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def graph(nodes, weights, shape, outputs=3, domains=()):
    """A model from `inputs` (batch, *shape) to `logits` (batch, outputs)."""
    found = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(one, 1) for one in domains)]
    return helper.make_model(found, opset_imports=opsets, ir_version=10)


def spread(random, *shape, uneven=True):
    """Weights whose output channels (the first axis) differ in size by up to 30 times."""
    values = random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    sizes = np.geomspace(0.2, 6, shape[0]) if uneven else np.ones(shape[0])
    return (values * sizes.reshape(-1, *(1 for _ in shape[1:]))).astype(np.float32)


def convolutions(seed=0, groups=1, biased=True):
    """Conv → Relu → Conv → Relu → Gemm, on (2, 6, 6); both convolutions have 8 channels."""
    random = np.random.default_rng(seed)
    node = helper.make_node
    biases = [["one.bias"], ["two.bias"]] if biased else [[], []]
    weights = {
        "one.weight": spread(random, 8, 2, 3, 3),
        "two.weight": spread(random, 8, 8 // groups, 3, 3),
        "head.weight": spread(random, 3, 8 * 36, uneven=False),
        "head.bias": random.normal(size=3).astype(np.float32),
        "flat": np.array([0, -1]),
    }
    if biased:
        weights |= {
            name: random.normal(size=8).astype(np.float32) * 0.1
            for name in ("one.bias", "two.bias")
        }
    nodes = [
        node("Conv", ["inputs", "one.weight", *biases[0]], ["a"], pads=[1] * 4, name="conv-1"),
        node("Relu", ["a"], ["b"]),
        node(
            "Conv",
            ["b", "two.weight", *biases[1]],
            ["c"],
            pads=[1] * 4,
            group=groups,
            name="conv-2",
        ),
        node("Relu", ["c"], ["d"]),
        node("Reshape", ["d", "flat"], ["e"]),
        node("Gemm", ["e", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    return graph(nodes, weights, (2, 6, 6))


def perceptron(width=32, seed=0, transposed=True):
    """Gemm → Relu → Gemm, on (12,)."""
    random = np.random.default_rng(seed)
    weights = {
        "one.weight": spread(random, width, 12),
        "one.bias": random.normal(size=width).astype(np.float32) * 0.1,
        "head.weight": spread(random, 3, width, uneven=False),
        "head.bias": random.normal(size=3).astype(np.float32),
    }
    if not transposed:
        weights |= {
            name: np.ascontiguousarray(weights[name].T) for name in ("one.weight", "head.weight")
        }
    stands = {"transB": int(transposed)}
    nodes = [
        helper.make_node("Gemm", ["inputs", "one.weight", "one.bias"], ["a"], **stands),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "head.weight", "head.bias"], ["logits"], **stands),
    ]
    return graph(nodes, weights, (12,))


def saved(model, path):
    """The path, with the model written to it."""
    onnx.save(model, path)
    return path


def rows_of(model, count=96, seed=1):
    """Rows that a model takes; normal values."""
    shape = [part.dim_value for part in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)
