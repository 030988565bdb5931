from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from tasks.errors import CompressionError
from tasks.exporters.onnx import run
from tasks.quantization_report import QuantizationReport
from tasks.quantizers.codebook import Codebook, k_means
from tasks.weight_tables import SortedValues
from tests.small_graphs import convolutions, perceptron, rows_of, saved

WIDE = perceptron(width=2048)


def sorted_values(values, weights=None):
    values = np.asarray(values, np.float64)
    return SortedValues.of(values, np.ones_like(values) if weights is None else weights)


def nearest_error(values, table):
    return float(np.square(values[:, None] - np.asarray(table)).min(1).sum())


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=60), st.sampled_from([4, 8]))
def test_no_value_would_be_better_off_with_another_centre_and_no_centre_elsewhere(values, count):
    values = np.asarray(values, np.float64)
    table = k_means(sorted_values(values), count)
    assert (np.diff(table) >= 0).all()
    chosen = np.abs(values[:, None] - table).argmin(1)
    for at in set(chosen.tolist()):
        own = values[chosen == at]
        # A value halfway between two centres may belong to either.
        if not np.isclose(np.diff(np.sort(np.abs(own[:, None] - table), axis=1)[:, :2]), 0).any():
            assert table[at] == pytest.approx(own.mean(), abs=1e-6)


def test_it_finds_what_scikit_learn_finds_from_the_same_start():
    values = np.random.default_rng(0).normal(size=500)
    start = np.linspace(values.min(), values.max(), 8)[:, None]
    expected = KMeans(8, init=start, n_init=1, tol=0, max_iter=1000).fit(values[:, None])
    table = k_means(sorted_values(values), 8)
    assert table == pytest.approx(np.sort(expected.cluster_centers_[:, 0]), abs=1e-6)
    assert nearest_error(values, table) < nearest_error(values, start[:, 0])


def test_heavier_values_draw_centres_nearer():
    values = np.array([0.0, 1.0, 10.0, 11.0])
    weights = np.array([1.0, 3.0, 1.0, 1.0])
    assert k_means(sorted_values(values, weights), 2) == pytest.approx([0.75, 10.5])


def written(model, tmp_path, rows=None, **changes):
    source = saved(model, tmp_path / "float.onnx")
    target = tmp_path / "small" / "model.onnx"
    target.parent.mkdir(exist_ok=True)
    Codebook(**changes).quantize(source, target, rows_of(model) if rows is None else rows)
    return source, target


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_file_is_as_small_as_its_bits(tmp_path, bits):
    source, target = written(WIDE, tmp_path, bits=bits, per_channel=False)
    weights, biases = (12 + 3) * 2048, 2048 + 3
    tables = 2 * 4 * 2**bits
    saved_bytes = weights * bits / 8 + 4 * biases + tables
    assert saved_bytes < target.stat().st_size < saved_bytes + 1700
    assert source.stat().st_size > 4 * weights


def test_four_bits_of_a_larger_network_take_an_eighth(tmp_path):
    random = np.random.default_rng(0)
    model = perceptron(width=512)
    middle = random.normal(size=(512, 512)).astype(np.float32) / 20
    model.graph.initializer.append(onnx.numpy_helper.from_array(middle, "middle.weight"))
    model.graph.node[2].input[0] = "m"
    nodes = [*model.graph.node]
    nodes.insert(2, onnx.helper.make_node("MatMul", ["b", "middle.weight"], ["m"]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    source, target = written(model, tmp_path)
    assert 4 / 32 < target.stat().st_size / source.stat().st_size < 4 / 32 * 1.1
    rows = rows_of(model)
    expected, found = run(source, rows), run(target, rows)
    assert np.abs(found - expected).mean() < 0.2 * expected.std()


def test_more_bits_are_nearer_to_the_float_model(tmp_path):
    rows = rows_of(WIDE)
    errors = []
    for bits in (2, 4, 6, 8):
        source, target = written(WIDE, tmp_path, bits=bits)
        errors.append(np.square(run(target, rows) - run(source, rows)).mean())
    assert all(two < one / 5 for one, two in pairwise(errors))


def test_a_scale_per_channel_pays_where_channels_differ(tmp_path):
    errors = {}
    for per_channel in (True, False):
        _, target = written(WIDE, tmp_path, per_channel=per_channel)
        found = QuantizationReport.read(target.parent).layers[0]
        errors[per_channel] = found.outputs_mse
    assert errors[True] < errors[False]


def test_weights_of_few_values_are_kept_exactly(tmp_path):
    model = perceptron(width=256)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight"):
            value = np.round(np.clip(onnx.numpy_helper.to_array(tensor), -1, 1) * 3) / 3
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), tensor.name))
    source, target = written(model, tmp_path, bits=3, per_channel=False)
    rows = rows_of(model)
    assert run(target, rows) == pytest.approx(run(source, rows), abs=1e-4)


@pytest.mark.parametrize("count", [1, 5])
def test_any_batch_runs(tmp_path, count):
    model = convolutions()
    _, target = written(model, tmp_path)
    onnx.checker.check_model(onnx.load(target))
    assert run(target, rows_of(model, count)).shape == (count, 3)


def test_rows_play_no_part_and_the_same_model_gives_the_same_file(tmp_path):
    model = convolutions()
    _, target = written(model, tmp_path)
    before = target.read_bytes()
    written(model, tmp_path, rows=np.zeros((0, 2, 6, 6), np.float32))
    assert target.read_bytes() == before


def test_a_network_too_small_for_tables_is_refused(tmp_path):
    with pytest.raises(CompressionError, match="no weight that 8-bit tables make smaller"):
        written(perceptron(width=8), tmp_path, bits=8)
