import logging

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from tasks.errors import CompressionError
from tasks.exporters.onnx import run
from tasks.quantization_report import QuantizationReport
from tasks.quantizers.static_int8 import StaticInt8
from tests.small_graphs import convolutions, perceptron, rows_of, saved


def pictures(count, seed):
    """Smooth colour pictures, so that the networks' answers differ from row to row."""
    random = np.random.default_rng(seed)
    coarse = torch.tensor(random.random((count, 3, 4, 4)), dtype=torch.float32)
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear").numpy()


@pytest.fixture(scope="module")
def quantized(exported_resnet, tmp_path_factory):
    _, source, _ = exported_resnet
    target = tmp_path_factory.mktemp("int8") / "model.onnx"
    StaticInt8(calibration_rows=64).quantize(source, target, pictures(80, 0))
    return source, target


def test_it_is_smaller_than_the_float_model(quantized):
    source, target = quantized
    assert target.stat().st_size < 0.45 * source.stat().st_size


def test_it_agrees_with_the_float_model_on_most_rows(quantized):
    rows = pictures(200, 1)
    float_logits, int8_logits = (run(path, rows) for path in quantized)
    assert (float_logits.argmax(1) == int8_logits.argmax(1)).mean() > 0.85
    spread = float_logits.std(axis=0).mean()
    assert np.abs(float_logits - int8_logits).mean() < 0.35 * spread
    assert np.abs(float_logits - int8_logits).max() > 0


@pytest.mark.parametrize("count", [1, 5])
def test_any_batch_runs(quantized, count):
    assert run(quantized[1], pictures(count, 2)).shape == (count, 10)


def test_weights_are_signed_per_channel_and_activations_unsigned(quantized):
    graph = onnx.load(quantized[1]).graph
    stored = {item.name: item for item in graph.initializer}
    made = {output for node in graph.node for output in node.output}
    weights = [
        node
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and len(stored.get(node.input[0], stored[node.input[1]]).dims) == 4
    ]
    assert len(weights) == 9
    for node in weights:
        weight = stored[node.input[0]]
        assert weight.data_type == TensorProto.INT8
        assert len(numpy_helper.to_array(stored[node.input[1]])) == weight.dims[0]
    zero_points = [stored[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zero_points
    assert {item.data_type for item in zero_points} == {TensorProto.UINT8}
    assert not [name for name in made if name in stored]


def test_only_operator_sets_in_use_are_listed_and_nothing_for_debuggers(quantized):
    model = onnx.load(quantized[1])
    onnx.checker.check_model(model)
    used = {node.domain for node in model.graph.node} | {""}
    assert {item.domain for item in model.opset_import} == used
    assert not model.metadata_props
    assert not model.graph.value_info
    assert not any(len(node.metadata_props) for node in model.graph.node)


def test_the_same_inputs_give_the_same_file(exported_convnet, tmp_path):
    rows = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    for name in ("first", "second"):
        StaticInt8().quantize(exported_convnet[1], tmp_path / name, rows)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_ranges_come_from_the_stated_number_of_rows(exported_convnet, tmp_path):
    rows = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    wild = rows.copy()
    wild[10:] *= 50
    files = []
    for name, calibration, count in (("a", rows, 10), ("b", wild, 10), ("c", wild, 20)):
        StaticInt8(calibration_rows=count).quantize(
            exported_convnet[1], tmp_path / name, calibration
        )
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1] != files[2]


def test_one_scale_per_tensor_is_another_file_that_runs(exported_convnet, tmp_path):
    rows = np.random.default_rng(0).random((10, 1, 8, 8), dtype=np.float32)
    for name, per_channel in (("each", True), ("whole", False)):
        StaticInt8(per_channel=per_channel).quantize(exported_convnet[1], tmp_path / name, rows)
    assert (tmp_path / "whole").stat().st_size < (tmp_path / "each").stat().st_size
    assert run(tmp_path / "whole", rows).shape == (10, 10)


def test_no_calibration_rows_are_refused(exported_convnet, tmp_path):
    with pytest.raises(CompressionError, match="no training rows to calibrate"):
        StaticInt8().quantize(
            exported_convnet[1], tmp_path / "model.onnx", np.zeros((0, 1, 8, 8), np.float32)
        )
    assert not (tmp_path / "model.onnx").exists()


def test_logging_is_as_it_was_afterwards(exported_convnet, tmp_path):
    rows = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
    logging.disable(logging.INFO)
    try:
        StaticInt8().quantize(exported_convnet[1], tmp_path / "model.onnx", rows)
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)


def quantized_small(model, tmp_path, rows=None, **changes):
    """A small graph's report, and the two files."""
    source, target = saved(model, tmp_path / "float.onnx"), tmp_path / "model.onnx"
    StaticInt8(**changes).quantize(source, target, rows_of(model) if rows is None else rows)
    return QuantizationReport.read(tmp_path), source, target


# Entropy gives up a few large values for the many small ones.
METHODS = {"min_max": 0.02, "percentile": 0.02, "entropy": 0.2, "mse": 0.02}


@pytest.mark.parametrize("per_channel", [True, False])
def test_every_calibration_makes_a_file_of_its_own_that_answers_alike(tmp_path, per_channel):
    model = convolutions()
    rows = rows_of(model)
    rows[3, 1, 2, 2] = 9.0  # so that the widest range is not the best
    files = set()
    for method, share in METHODS.items():
        _, source, target = quantized_small(
            model, tmp_path, rows, calibration=method, per_channel=per_channel
        )
        files.add(target.read_bytes())
        expected, found = run(source, rows), run(target, rows)
        assert np.square(found - expected).mean() < share * expected.var(), method
    assert len(files) == len(METHODS)


def scales_of(path):
    """What the activations' ranges are divided into."""
    graph = onnx.load(path).graph
    stored = {item.name: item for item in graph.initializer}
    return [
        float(numpy_helper.to_array(stored[node.input[1]]))
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    ]


def test_a_percentile_narrows_the_ranges(tmp_path):
    model = perceptron()
    found = {}
    for share in (100.0, 99.0, 90.0):
        _, _, target = quantized_small(model, tmp_path, calibration="percentile", percentile=share)
        found[share] = scales_of(target)
    _, _, target = quantized_small(model, tmp_path)
    assert found[100.0] == pytest.approx(scales_of(target), rel=0.01)
    assert all(
        one > two > three
        for one, two, three in zip(found[100.0], found[99.0], found[90.0], strict=True)
    )


def test_the_report_has_every_layers_error_and_bytes(tmp_path):
    model = convolutions()
    rows = rows_of(model)
    report, _, target = quantized_small(model, tmp_path, rows)
    assert [(one.layer, one.operator) for one in report.layers] == [
        ("one", "Conv"),
        ("two", "Conv"),
        ("head", "Gemm"),
    ]
    assert report.size_bytes == target.stat().st_size
    assert report.method == StaticInt8().plain()
    assert report.activations == "fixed ranges"
    assert report.kept_in_float == ()
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for one in report.layers:
        weight = weights[f"{one.layer}.weight"].astype(float)
        channels = len(weight)
        scale = np.abs(weight.reshape(channels, -1)).max(1) / 64  # 7 bits
        scale = scale.reshape(-1, *(1 for _ in weight.shape[1:]))
        expected = np.square(np.round(weight / scale) * scale - weight).mean()
        assert one.weights_mse == pytest.approx(expected, rel=1e-3)
        assert one.size_bytes == weight.size + 4 * channels + channels
        assert one.outputs_mse > 0
        assert one.compensated_weights_mse is one.compensated_outputs_mse is None
    expected = np.square(run(tmp_path / "float.onnx", rows) - run(target, rows)).mean()
    assert report.layers[-1].outputs_mse == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [{"equalize": True}, {"correct_bias": True}, {"equalize": True, "correct_bias": True}],
    ids=str,
)
def test_compensation_brings_the_outputs_nearer_where_a_tensor_has_one_scale(tmp_path, changes):
    model = convolutions()
    rows = np.abs(rows_of(model))
    plain, _, _ = quantized_small(model, tmp_path, rows, per_channel=False)
    found, source, target = quantized_small(model, tmp_path, rows, per_channel=False, **changes)
    for before, after in zip(plain.layers, found.layers, strict=True):
        assert (after.weights_mse, after.outputs_mse) == (before.weights_mse, before.outputs_mse)
    last = found.layers[-1]
    assert last.compensated_outputs_mse < 0.8 * last.outputs_mse
    expected = np.square(run(source, rows) - run(target, rows)).mean()
    assert last.compensated_outputs_mse == pytest.approx(expected, rel=0.05)
    first = found.layers[0]
    if "equalize" in changes:
        assert first.compensated_weights_mse < first.weights_mse
    else:
        assert first.compensated_weights_mse == first.weights_mse
        assert all(one.compensated_outputs_mse < one.outputs_mse for one in found.layers)


def test_a_network_without_weights_is_refused(tmp_path):
    model = perceptron()
    relu = [node for node in model.graph.node if node.op_type == "Relu"]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(relu)
    model.graph.node[0].input[0], model.graph.node[0].output[0] = "inputs", "logits"
    with pytest.raises(CompressionError, match=r"float\.onnx has no float weights to quantize"):
        quantized_small(model, tmp_path)
    assert not (tmp_path / "model.onnx").exists()


def with_node(operator, shapes, **more):
    """A perceptron in whose middle another operator stands."""
    model = perceptron()
    names = [f"extra.{at}" for at in range(len(shapes))]
    for name, shape in zip(names, shapes, strict=True):
        value = np.full(shape, 0.1, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    node = onnx.helper.make_node(operator, ["b", *names], ["odd"], name="the-odd-one", **more)
    nodes = [*model.graph.node]
    nodes[2].input[0] = "odd"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:2], node, nodes[2]])
    return model


def test_an_operator_that_would_keep_its_weights_in_float_is_named(tmp_path):
    model = with_node("PRelu", [(1, 32)])
    with pytest.raises(CompressionError, match=r"PRelu \(node 'the-odd-one', weight 'extra\.0'\)"):
        quantized_small(model, tmp_path)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("domain", ["", "elsewhere"])
def test_an_operator_that_nobody_knows_is_named(tmp_path, domain):
    model = with_node("Frobnicate", [], domain=domain)
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    with pytest.raises(CompressionError, match=r"Frobnicate \(node 'the-odd-one', output 'odd'\)"):
        quantized_small(model, tmp_path)


def test_quantizing_twice_is_refused(quantized, tmp_path):
    with pytest.raises(CompressionError, match="not yet quantized"):
        StaticInt8().quantize(quantized[1], tmp_path / "model.onnx", pictures(4, 0))


def test_training_can_imitate_a_scale_per_channel_alone():
    assert StaticInt8().weight_limit == 64
    assert StaticInt8(reduce_range=False).weight_limit == 127
    assert StaticInt8(per_channel=False).weight_limit == 0


def test_what_touches_infinite_values_stays_in_float(tmp_path):
    mask = np.where(np.arange(32) % 2, np.float32(-np.inf), np.float32(0))
    model = with_node("Add", [(1, 32)])
    stored = next(one for one in model.graph.initializer if one.name == "extra.0")
    stored.CopyFrom(numpy_helper.from_array(mask[None], "extra.0"))
    model.graph.node[3].input[0] = "weights"
    nodes = [*model.graph.node]
    nodes.insert(3, onnx.helper.make_node("Softmax", ["odd"], ["weights"]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    rows = rows_of(model)
    _, source, target = quantized_small(model, tmp_path, rows)
    expected, found = run(source, rows), run(target, rows)
    assert np.square(found - expected).mean() < 0.01 * expected.var()
    assert target.stat().st_size < source.stat().st_size + 1500
