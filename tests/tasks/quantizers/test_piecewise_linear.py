import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.exporters.onnx import run
from tasks.quantization_report import QuantizationReport
from tasks.quantizers.piecewise_linear import PiecewiseLinear, grid, two_regions
from tasks.weight_tables import SortedValues
from tests.small_graphs import convolutions, perceptron, rows_of, saved


def error(values, table):
    return float(np.square(values[:, None] - np.asarray(table)).min(1).sum())


def levels(p, m, count):
    """The paper's two regions, written out: [-p, p], and (p, m] with its mirror image."""
    inner = [-p + 2 * p * at / (count // 2 - 1) for at in range(count // 2)]
    outer = [p + (m - p) * at / (count // 4) for at in range(1, count // 4 + 1)]
    return sorted([*inner, *outer, *(-one for one in outer)])


@pytest.mark.parametrize("count", [4, 8, 16, 256])
def test_a_grid_is_uniform_in_two_regions(count):
    assert grid(0.3, count) == pytest.approx(levels(0.3, 1.0, count))


@settings(max_examples=25)
@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=40), st.sampled_from([4, 8, 16]))
def test_the_breakpoint_is_the_best_of_all_tried(values, count):
    values = np.asarray(values, np.float64)
    largest = np.abs(values).max()
    table = two_regions(SortedValues.of(values, np.ones_like(values)), count)
    tried = [error(values, levels(largest * at / 200, largest, count)) for at in range(1, 200)]
    assert error(values, table) == pytest.approx(min(tried), abs=1e-6)
    assert len(table) == count


def test_it_is_nearer_to_bell_shaped_weights_than_one_even_grid():
    values = np.random.default_rng(0).normal(size=5000)
    table = two_regions(SortedValues.of(values, np.ones_like(values)), 16)
    even = np.linspace(-np.abs(values).max(), np.abs(values).max(), 16)
    assert error(values, table) < 0.7 * error(values, even)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_file_is_as_small_as_its_bits_and_runs(tmp_path, bits):
    model = perceptron(width=2048)
    source = saved(model, tmp_path / "float.onnx")
    target = tmp_path / "model.onnx"
    rows = rows_of(model)
    PiecewiseLinear(bits=bits).quantize(source, target, rows)
    weights, floats = (12 + 3) * 2048, 2 * (2048 + 3) + 2 * 2**bits
    assert target.stat().st_size < weights * bits / 8 + 4 * floats + 1700
    expected, found = run(source, rows), run(target, rows)
    assert np.square(found - expected).mean() < {2: 0.5, 4: 0.02, 8: 1e-4}[bits] * expected.var()
    assert {one.bits for one in QuantizationReport.read(tmp_path).layers} == {bits}


def test_convolutions_become_the_grids_values(tmp_path):
    model = convolutions()
    source = saved(model, tmp_path / "float.onnx")
    PiecewiseLinear(per_channel=False).quantize(source, tmp_path / "model.onnx", rows_of(model))
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
    weight = onnx.numpy_helper.to_array(
        next(one for one in model.graph.initializer if one.name == "two.weight")
    ).astype(float)
    largest = np.abs(weight).max()
    flat = weight.ravel()
    tried = [error(flat, levels(largest * at / 200, largest, 16)) for at in range(1, 200)]
    layers = {one.layer: one for one in QuantizationReport.read(tmp_path).layers}
    assert layers["two"].weights_mse == pytest.approx(min(tried) / flat.size, rel=1e-3)
    rows = rows_of(model, 3)
    assert run(tmp_path / "model.onnx", rows).shape == (3, 3)
