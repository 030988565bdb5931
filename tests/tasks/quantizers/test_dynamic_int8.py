import logging

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from tasks.exporters.onnx import Onnx, run
from tasks.networks import Spec
from tasks.networks.ngrams import NGrams
from tasks.networks.text_cnn import TextCNN
from tasks.quantizers.dynamic_int8 import DynamicInt8
from tasks.quantizers.static_int8 import StaticInt8
from tasks.runtimes.text import PAD

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
