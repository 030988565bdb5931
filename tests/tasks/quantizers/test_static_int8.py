import logging

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from tasks.errors import CompressionError
from tasks.exporters.onnx import run
from tasks.quantizers.static_int8 import StaticInt8


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
