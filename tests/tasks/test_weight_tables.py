import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tasks.errors import CompressionError
from tasks.exporters.onnx import run
from tasks.onnx_layers import constant, layers, plain_session
from tasks.quantization_report import QuantizationReport
from tasks.weight_tables import (
    SortedValues,
    coded,
    packed,
    quantize_weights,
    unpack_function,
)
from tests.small_graphs import convolutions, perceptron, rows_of, saved, spread


def unpacked(planes, count):
    """Positions from planes of bits, one bit at a time."""
    return [
        sum(((int(plane[at // 8, 0]) >> (at % 8)) & 1) << bit for bit, plane in enumerate(planes))
        for at in range(count)
    ]


@st.composite
def positions(draw):
    bits = draw(st.integers(2, 8))
    values = st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=40)
    return bits, np.asarray(draw(values), np.uint8)


@given(positions())
def test_positions_come_back_from_their_bits(found):
    bits, at = found
    planes = packed(at, bits)
    assert planes.nbytes == bits * -(-len(at) // 8)
    assert unpacked(planes, len(at)) == at.tolist()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3, 1)])
def test_the_file_unpacks_what_was_packed(bits, shape):
    random = np.random.default_rng(bits)
    at = random.integers(0, 2**bits, shape).astype(np.uint8)
    table = np.sort(random.normal(size=2**bits)).astype(np.float32)
    scale = random.random((shape[0], *(1 for _ in shape[1:]))).astype(np.float32)
    values = {
        "planes": packed(at, bits),
        "table": table,
        "scale": scale,
        "shape": np.asarray(shape, np.int64),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Unpack", list(values), ["weight"], domain="stillmark"),
            helper.make_node("Mul", ["inputs", "weight"], ["product"]),
        ],
        "unpacking",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(
        graph,
        functions=[unpack_function(bits, 18)],
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("stillmark", 1)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    session = plain_session(model.SerializeToString())
    (found,) = session.run(None, {"inputs": np.ones(shape, np.float32)})
    assert np.array_equal(found, table[at] * scale)


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0.01, 3)), min_size=1, max_size=30),
    st.lists(st.floats(-5, 5), min_size=2, max_size=8, unique=True),
)
def test_a_tables_error_is_that_of_each_values_nearest_entry(pairs, table):
    values, weights = np.asarray(pairs).T
    table = np.sort(table)
    nearest = np.abs(values[:, None] - table).min(1)
    found = SortedValues.of(values, weights).error(table)
    assert found == pytest.approx(float((weights * nearest**2).sum()), abs=1e-9)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_coded_weight_is_the_nearest_one_that_the_table_allows(per_channel, transposed):
    model = perceptron(transposed=transposed)
    layer = layers(model)[0]
    weight = constant(model, layer.weight)

    def even(values, count):
        return np.linspace(values.values[0], values.values[-1], count)

    code = coded(weight, layer, 3, even, per_channel=per_channel)
    choices = code.table * np.broadcast_to(code.scale, weight.shape)[..., None]
    best = np.abs(choices - weight[..., None]).min(-1)
    found = np.abs(code.table[code.at] * code.scale - weight)
    assert found == pytest.approx(best, abs=1e-6)
    channels = weight.shape[0 if transposed else 1]
    assert code.scale.size == (channels if per_channel else 1)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_table_is_chosen_by_the_error_of_the_weight_itself(per_channel):
    model = perceptron()
    layer = layers(model)[0]
    weight = constant(model, layer.weight).astype(float)
    asked = []

    def even(values, count):
        table = np.linspace(-1, 1, count)
        asked.append(values.error(table))
        return table

    code = coded(weight, layer, 3, even, per_channel=per_channel)
    found = code.table[code.at].astype(float) * code.scale
    assert asked == [pytest.approx(np.square(found - weight).sum(), rel=1e-4)]


def coarse(values, count):
    return np.linspace(-1, 1, count)


def write(model, tmp_path, bits=4, rows=None):
    source = saved(model, tmp_path / "float.onnx")
    target = tmp_path / "small" / "model.onnx"
    target.parent.mkdir()
    found = np.zeros((0, 12), np.float32) if rows is None else rows
    quantize_weights({"name": "x"}, source, target, found, bits, coarse, per_channel=True)
    return target


@pytest.mark.parametrize("transposed", [True, False])
def test_a_written_file_computes_with_the_coded_weights(tmp_path, transposed):
    model = perceptron(width=64, transposed=transposed)
    rows = rows_of(model)
    target = write(model, tmp_path, rows=rows)
    weights = {
        one.name: np.asarray(numpy_helper.to_array(one), float) for one in model.graph.initializer
    }
    floats = dict(weights)
    for layer in layers(model):
        code = coded(constant(model, layer.weight), layer, 4, coarse, per_channel=True)
        weights[layer.weight] = code.table[code.at].astype(float) * code.scale
    one, head = (
        weights[name].T if transposed else weights[name] for name in ("one.weight", "head.weight")
    )
    hidden = np.maximum(rows @ one + weights["one.bias"], 0)
    assert run(target, rows) == pytest.approx(hidden @ head + weights["head.bias"], abs=1e-4)
    report = QuantizationReport.read(target.parent)
    assert [found.layer for found in report.layers] == ["one", "head"]
    for found in report.layers:
        name = f"{found.layer}.weight"
        errors = np.square(weights[name] - floats[name])
        assert found.weights_mse == pytest.approx(errors.mean(), rel=1e-4)
        assert found.outputs_mse > 0
    assert report.size_bytes == target.stat().st_size


def test_without_rows_the_report_says_nothing_of_outputs(tmp_path):
    target = write(perceptron(width=64), tmp_path)
    assert QuantizationReport.read(target.parent).layers[0].outputs_mse is None


def test_layers_that_a_table_would_make_larger_stay_as_they_are(tmp_path):
    model = convolutions()
    target = write(model, tmp_path, bits=8, rows=rows_of(model))
    names = [one.layer for one in QuantizationReport.read(target.parent).layers]
    assert names == ["two", "head"]  # `one` has 144 values: 576 bytes, as much as a table


def test_where_nothing_gets_smaller_it_is_an_error(tmp_path):
    with pytest.raises(CompressionError, match=r"float\.onnx has no weight that 8-bit tables"):
        write(perceptron(), tmp_path, bits=8)
    assert not list((tmp_path / "small").iterdir())


def test_uneven_weights_are_what_these_graphs_have():
    found = np.abs(spread(np.random.default_rng(0), 8, 50)).max(1)
    assert found.max() > 10 * found.min()
