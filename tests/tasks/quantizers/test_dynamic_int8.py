import logging

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from tasks.errors import CompressionError
from tasks.exporters.onnx import Onnx, run
from tasks.networks import Spec
from tasks.networks.ngrams import NGrams
from tasks.networks.text_cnn import TextCNN
from tasks.quantization_report import QuantizationReport
from tasks.quantizers.dynamic_int8 import DynamicInt8
from tasks.quantizers.static_int8 import StaticInt8
from tasks.runtimes.text import PAD
from tests.small_graphs import convolutions, perceptron, rows_of, saved

NOTHING = np.zeros((0, 12), np.int64)
SPECS = {
    "ngrams": Spec(network=NGrams(width=16, buckets=500), shape=(12, 600), outputs=8),
    "text_cnn": Spec(network=TextCNN(width=24, widths=(32,)), shape=(12, 600), outputs=8),
}


def texts(count, seed):
    source = np.random.default_rng(seed)
    ids = source.integers(3, 600, (count, 12))
    return np.where(np.arange(12) < source.integers(3, 13, (count, 1)), ids, PAD)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each network as a float file, its weights as spread as trained ones."""
    found = {}
    for name, spec in SPECS.items():
        torch.manual_seed(0)
        network = spec.build().eval()
        for parameter in network.body.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        found[name] = tmp_path_factory.mktemp(name) / "model.onnx"
        Onnx().export(network, torch.from_numpy(texts(4, 0)), found[name])
    return found


@pytest.fixture(scope="module")
def quantized(exported, tmp_path_factory):
    found = {}
    for name, source in exported.items():
        found[name] = tmp_path_factory.mktemp(name) / "model.onnx"
        DynamicInt8().quantize(source, found[name], NOTHING)
    return found


@pytest.mark.parametrize("name", SPECS)
def test_it_is_a_quarter_of_the_float_model(exported, quantized, name):
    assert quantized[name].stat().st_size < 0.34 * exported[name].stat().st_size


@pytest.mark.parametrize("name", SPECS)
def test_it_agrees_with_the_float_model_on_almost_all_rows(exported, quantized, name):
    rows = texts(400, 1)
    expected, found = run(exported[name], rows), run(quantized[name], rows)
    assert (expected.argmax(1) == found.argmax(1)).mean() > 0.95
    difference = np.abs(expected - found)
    assert difference.max() < 0.15 * expected.std()
    assert difference.max() > 0


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("count", [1, 5])
def test_any_batch_runs(quantized, name, count):
    assert run(quantized[name], texts(count, 2)).shape == (count, 8)


@pytest.mark.parametrize("name", SPECS)
def test_every_weight_is_stored_in_eight_unsigned_bits(quantized, name):
    stored = onnx.load(quantized[name]).graph.initializer
    large = [item for item in stored if np.prod(item.dims) > 64]
    assert len(large) == 3
    assert {item.data_type for item in large} == {TensorProto.UINT8}


def test_scales_are_per_channel_unless_told_otherwise(exported, quantized, tmp_path):
    DynamicInt8(per_channel=False).quantize(exported["ngrams"], tmp_path / "whole", NOTHING)

    def scales_and_bias(path):
        stored = onnx.load(path).graph.initializer
        floats = [one for one in stored if one.data_type == TensorProto.FLOAT]
        return sorted(numpy_helper.to_array(one).size for one in floats)

    bias = 8
    assert scales_and_bias(tmp_path / "whole") == [1, 1, 1, bias]
    assert scales_and_bias(quantized["ngrams"]) == [1, 1, 8, bias]


def test_only_operator_sets_in_use_are_listed_and_nothing_for_debuggers(quantized):
    for path in quantized.values():
        model = onnx.load(path)
        onnx.checker.check_model(model)
        used = {node.domain for node in model.graph.node} | {""}
        assert {item.domain for item in model.opset_import} == used
        assert not model.metadata_props
        assert not model.graph.value_info


def test_neither_rows_nor_chance_play_a_part_and_the_source_is_left_alone(
    exported, quantized, tmp_path
):
    before = exported["text_cnn"].read_bytes()
    DynamicInt8().quantize(exported["text_cnn"], tmp_path / "again", texts(50, 3))
    assert (tmp_path / "again").read_bytes() == quantized["text_cnn"].read_bytes()
    assert exported["text_cnn"].read_bytes() == before
    assert [file.name for file in exported["text_cnn"].parent.iterdir()] == ["model.onnx"]


def test_images_are_quantized_too(exported_convnet, tmp_path):
    source = exported_convnet[1]
    DynamicInt8().quantize(source, tmp_path / "model.onnx", NOTHING)
    rows = np.random.default_rng(0).random((100, 1, 8, 8), dtype=np.float32)
    expected, found = run(source, rows), run(tmp_path / "model.onnx", rows)
    assert np.abs(expected - found).max() < 0.2 * expected.std(axis=0).mean()


@pytest.mark.parametrize("name", SPECS)
def test_ranges_fixed_in_advance_work_on_texts_too(exported, tmp_path, name):
    StaticInt8().quantize(exported[name], tmp_path / "model.onnx", texts(64, 4))
    rows = texts(200, 1)
    expected, found = run(exported[name], rows), run(tmp_path / "model.onnx", rows)
    assert (expected.argmax(1) == found.argmax(1)).mean() > 0.75
    assert (tmp_path / "model.onnx").stat().st_size < 0.4 * exported[name].stat().st_size


def test_logging_is_as_it_was_afterwards(exported, tmp_path):
    logging.disable(logging.INFO)
    try:
        DynamicInt8().quantize(exported["ngrams"], tmp_path / "model.onnx", NOTHING)
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)


# The report


def reported(model, tmp_path, rows=None, **changes):
    """A small graph's report, and the two files."""
    source, target = saved(model, tmp_path / "float.onnx"), tmp_path / "model.onnx"
    DynamicInt8(**changes).quantize(source, target, rows_of(model) if rows is None else rows)
    return QuantizationReport.read(tmp_path), source, target


def eight_bits(weight, channels):
    """A weight in 256 levels that hold its smallest and largest value and 0, per channel or not."""
    axes = tuple(range(weight.ndim)) if channels is None else (1 - channels,)
    low = np.minimum(weight.min(axes, keepdims=True), 0)
    high = np.maximum(weight.max(axes, keepdims=True), 0)
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    return (np.clip(np.round(weight / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_the_report_has_every_layers_error_and_bytes(tmp_path, per_channel, transposed):
    model = perceptron(transposed=transposed)
    rows = rows_of(model)
    report, source, target = reported(model, tmp_path, rows, per_channel=per_channel)
    assert [(one.layer, one.operator) for one in report.layers] == [
        ("one", "Gemm"),
        ("head", "Gemm"),
    ]
    assert report.method == DynamicInt8(per_channel=per_channel).plain()
    assert report.size_bytes == target.stat().st_size
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    outputs = 0 if transposed else 1
    for one in report.layers:
        weight = weights[f"{one.layer}.weight"].astype(float)
        expected = eight_bits(weight, outputs if per_channel else None)
        # A value halfway between two levels may fall to either.
        assert one.weights_mse == pytest.approx(np.square(expected - weight).mean(), rel=0.02)
        scales = weight.shape[outputs] if per_channel else 1
        assert one.size_bytes == weight.size + 4 * scales + scales
        assert one.float_size_bytes == 4 * weight.size
        assert one.outputs_mse > 0
    expected = np.mean(
        [
            np.square(run(source, part) - run(target, part)).mean(1)
            for part in (rows[:32], rows[32:64], rows[64:])  # ranges follow from the batch
        ]
    )
    assert report.layers[-1].outputs_mse == pytest.approx(expected, rel=0.3)


def test_the_report_says_that_activations_have_the_ranges_of_each_batch(tmp_path):
    report, _, _ = reported(convolutions(groups=2), tmp_path)
    assert report.activations == "ranges of each batch"
    assert report.kept_in_float == ()
    assert [one.operator for one in report.layers] == ["Conv", "Conv", "Gemm"]
    # A convolution's weights have one scale in all, whatever is asked for.
    assert report.layers[0].size_bytes == 8 * 2 * 9 + 4 + 1
    assert report.layers[0].outputs_mse < report.layers[1].outputs_mse


def test_a_layer_that_stays_in_float_is_named(tmp_path):
    model = perceptron()
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("alpha", 0.5))
    report, _, _ = reported(model, tmp_path)
    assert [one.layer for one in report.layers] == ["head"]
    assert report.kept_in_float == ("one",)


@pytest.mark.parametrize("name", SPECS)
def test_texts_are_reported_too_and_without_rows_their_weights_alone(exported, tmp_path, name):
    found = {}
    for count in (0, 40):
        place = tmp_path / str(count)
        place.mkdir()
        DynamicInt8().quantize(exported[name], place / "model.onnx", texts(count, 5))
        found[count] = QuantizationReport.read(place).layers
    assert len(found[0]) == 3
    assert {one.outputs_mse for one in found[0]} == {None}
    for without, one in zip(found[0], found[40], strict=True):
        assert (one.layer, one.weights_mse) == (without.layer, without.weights_mse)
        assert 0 < one.weights_mse < 1e-3 * 0.3**2
        assert one.outputs_mse > 0
        assert one.size_bytes < 0.35 * one.float_size_bytes


def test_a_network_without_weights_is_refused(tmp_path):
    model = perceptron()
    relu = model.graph.node[1]
    relu.input[0], relu.output[0] = "inputs", "logits"
    del model.graph.node[2], model.graph.node[0], model.graph.initializer[:]
    with pytest.raises(CompressionError, match=r"float\.onnx has no float weights to quantize"):
        reported(model, tmp_path)
    assert not (tmp_path / "model.onnx").exists()
