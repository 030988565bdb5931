import json

import numpy as np
import onnx
import pytest

from tasks.compensation import equalized
from tasks.onnx_layers import constant, layers
from tasks.quantization_report import QuantizationReport, Quantized, report
from tests.small_graphs import convolutions, rows_of


def quantized(model, found=None):
    """A graph that says what its weights are worth; nothing in it is quantized."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for layer in layers(model):
        node = onnx.helper.make_node("Identity", [layer.weight], [f"{layer.weight}_value"])
        copy.graph.node.insert(0, node)
    return Quantized(copy, 32, lambda name: f"{name}_value", lambda name: [name], equalized=found)


def test_an_equalized_graph_is_measured_on_the_scale_of_the_old_one():
    model = convolutions(groups=2)
    found = equalized(model)
    rows = rows_of(model)
    made = report({}, model, quantized(model), quantized(found.model, found), rows, 1)
    assert [one.layer for one in made.layers] == ["one", "two", "head"]
    for one in made.layers:
        assert (one.weights_mse, one.outputs_mse) == (0, 0)
        assert one.compensated_weights_mse < 1e-10
        assert one.compensated_outputs_mse < 1e-8
        assert one.size_bytes == constant(model, f"{one.layer}.weight").nbytes
        assert one.float_size_bytes == one.size_bytes
    assert made.kept_in_float == ()


def test_errors_are_means_of_squares():
    model = convolutions()
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if tensor.name == "head.weight":
            value = onnx.numpy_helper.to_array(tensor) + np.float32(0.5)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    rows = rows_of(model, 70)
    made = report({}, model, quantized(other), None, rows, 1)
    assert [one.weights_mse for one in made.layers] == [0, 0, pytest.approx(0.25, rel=1e-5)]
    (hidden,) = onnx.reference.ReferenceEvaluator(without_head(model)).run(None, {"inputs": rows})
    expected = np.square(hidden.astype(float).sum(1) * 0.5).mean()
    assert made.layers[2].outputs_mse == pytest.approx(expected, rel=1e-4)
    assert made.layers[2].compensated_outputs_mse is None


def without_head(model):
    """The graph up to what its last layer reads."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[-1]
    copy.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("e", 1, None))
    return copy


def test_what_is_written_is_read_again(tmp_path):
    model = convolutions()
    made = report({"name": "x"}, model, quantized(model), None, rows_of(model, 0), 7)
    made.write(tmp_path)
    assert QuantizationReport.read(tmp_path) == made
    assert {one.outputs_mse for one in made.layers} == {None}
    assert made.activations == "float"


def test_a_report_from_before_some_figures_were_kept_is_read(tmp_path):
    layer = {"layer": "head", "operator": "Gemm", "bits": 8, "size_bytes": 9}
    layer |= {"weights_mse": 0.1, "outputs_mse": None}
    old = {"method": {"name": "static_int8"}, "size_bytes": 7, "layers": [layer]}
    (tmp_path / "quantization.json").write_text(json.dumps(old))
    found = QuantizationReport.read(tmp_path)
    assert (found.activations, found.kept_in_float) == (None, None)
    assert found.layers[0].float_size_bytes is None
