import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tasks.onnx_layers import batches, constant, layers, observed, prepared, set_constant
from tests.small_graphs import convolutions, graph, perceptron, rows_of, saved


def test_layers_are_the_nodes_with_float_weights_in_order():
    found = layers(convolutions(groups=2))
    assert [(one.name, one.operator, one.bias, one.inputs, one.output) for one in found] == [
        ("one", "Conv", "one.bias", "inputs", "a"),
        ("two", "Conv", "two.bias", "b", "c"),
        ("head", "Gemm", "head.bias", "e", "logits"),
    ]
    assert [one.groups for one in found] == [1, 2, 1]
    assert [one.activated for one in found] == ["b", "d", None]
    assert [one.bias for one in layers(convolutions(biased=False))] == [None, None, "head.bias"]


@pytest.mark.parametrize(("transposed", "axis"), [(True, 0), (False, 1)])
def test_the_axis_of_the_outputs_is_known(transposed, axis):
    model = perceptron(width=16, transposed=transposed)
    layer = layers(model)[0]
    assert layer.axis == axis
    assert layer.along_outputs(np.arange(16), 2).shape == ((16, 1) if transposed else (1, 16))


def test_products_and_tables_of_embeddings_are_layers_too():
    nodes = [
        onnx.helper.make_node("Gather", ["table", "ids"], ["a"]),
        onnx.helper.make_node("MatMul", ["inputs", "product"], ["logits"]),
    ]
    weights = {
        "table": np.ones((9, 4), np.float32),
        "ids": np.zeros((1, 2), np.int64),
        "product": np.ones((5, 3), np.float32),
    }
    found = layers(graph(nodes, weights, (5,)))
    assert [(one.name, one.inputs, one.axis) for one in found] == [
        ("table", "ids", 1),
        ("product", "inputs", 1),
    ]


def test_values_inside_a_graph_are_seen_batch_by_batch():
    model = convolutions()
    rows = rows_of(model, 70)
    before = model.SerializeToString()
    found = list(observed(model, ["inputs", "logits", "b", "b"], rows))
    assert [len(one["b"]) for one in found] == [64, 6]
    assert np.array_equal(np.concatenate([one["inputs"] for one in found]), rows)
    expected = ReferenceEvaluator(model).run(None, {"inputs": rows})[0]
    assert np.concatenate([one["logits"] for one in found]) == pytest.approx(expected, abs=1e-4)
    assert all((one["b"] >= 0).all() for one in found)
    assert model.SerializeToString() == before


def test_no_rows_make_no_batch():
    assert list(batches(np.zeros((0, 3)))) == []


def test_a_constant_is_changed_in_place():
    model = perceptron()
    set_constant(model, "head.bias", np.array([1.0, 2.0, 3.0]))
    found = constant(model, "head.bias")
    assert found.tolist() == [1, 2, 3]
    assert found.dtype == np.float32


def test_preparing_folds_normalisation_into_weights(tmp_path):
    model = convolutions()
    random = np.random.default_rng(0)
    for name in ("scale", "shift", "mean", "variance"):
        value = random.random(8).astype(np.float32) + 0.5
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    nodes = [*model.graph.node]
    names = ["a", "scale", "shift", "mean", "variance"]
    nodes.insert(1, onnx.helper.make_node("BatchNormalization", names, ["n"]))
    nodes[2].input[0] = "n"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    found = prepared(saved(model, tmp_path / "model.onnx"))
    operators = [node.op_type for node in found.graph.node]
    assert operators == ["Conv", "Relu", "Conv", "Relu", "Reshape", "Gemm"]
    rows = rows_of(model, 5)
    expected = ReferenceEvaluator(model).run(None, {"inputs": rows})[0]
    assert ReferenceEvaluator(found).run(None, {"inputs": rows})[0] == pytest.approx(
        expected, abs=1e-4
    )
