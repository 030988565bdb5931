import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from tasks.activation_ranges import activation_ranges, least_squares_range, unbounded
from tests.small_graphs import perceptron, rows_of

MODEL = perceptron()


@pytest.fixture(scope="module")
def rows():
    """Normal values, a few of them far out."""
    found = rows_of(MODEL, 150)
    found[7, 3], found[80, 5] = 40, -30
    return found


def hidden(rows):
    """What goes into the last layer, computed without the module."""
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    del model.graph.node[2:]
    model.graph.node[1].output[0] = "logits"
    return ReferenceEvaluator(model).run(None, {"inputs": rows})[0]


def ranges(rows, method, percentile=99.99):
    found = activation_ranges(MODEL, rows, method, percentile)
    return {
        name: (float(np.squeeze(one.lowest)), float(np.squeeze(one.highest)))
        for name, one in found.items()
    }


def squared_error(values, low, high):
    """Of values stored in 8 unsigned bits."""
    scale = np.float64(high - low) / 255
    zero = np.round(-low / scale)
    stored = np.clip(np.round(values / scale) + zero, 0, 255)
    return float(np.square(scale * (stored - zero) - values).sum())


def test_min_max_is_the_smallest_and_largest_value(rows):
    found = ranges(rows, "min_max")
    assert found["inputs"] == (rows.min(), rows.max())
    assert found["b"] == pytest.approx((0, hidden(rows).max()), rel=1e-5)
    assert set(found) == {"inputs", "a", "b", "logits"}


@pytest.mark.parametrize("share", [99.0, 90.0])
def test_a_percentile_leaves_half_of_the_rest_out_on_either_side(rows, share):
    found = ranges(rows, "percentile", share)["inputs"]
    expected = np.percentile(rows, [(100 - share) / 2, (100 + share) / 2])
    bins = 2 * 40 / 2048
    assert found == pytest.approx(expected, abs=2 * bins)


def test_entropy_cuts_off_what_lies_far_out_and_stays_inside_what_was_seen(rows):
    low, high = ranges(rows, "entropy")["inputs"]
    assert high < 0.7 * rows.max()
    assert low > 0.9 * rows.min()
    assert high > np.percentile(rows, 99)


def test_mse_has_the_least_squared_error_of_all_shrunken_ranges(rows):
    found = ranges(rows, "mse")
    for name, seen in (("inputs", rows), ("b", hidden(rows))):
        values = seen.astype(np.float64).ravel()
        low, high = min(0, values.min()), values.max()
        factors = np.arange(1, 51) / 50
        errors = [
            squared_error(values, one * low, two * high)
            for one in (factors if low < 0 else [1])
            for two in factors
        ]
        mine = squared_error(values, *found[name])
        assert mine <= min(errors) * 1.01
    assert found["inputs"][1] <= rows.max()


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30),
)
def test_a_least_squares_range_is_never_worse_than_the_widest(values):
    values = np.asarray(values, np.float64)
    low, high = min(0.0, values.min()), max(0.0, values.max())
    if high - low < 1e-30:
        return
    found = least_squares_range(values, np.ones(len(values)), low, high)
    assert low <= found[0] <= 0 <= found[1] <= high
    assert squared_error(values, *found) <= squared_error(values, low, high) * (1 + 1e-9)


def test_a_value_that_is_always_zero_has_a_range():
    assert least_squares_range(np.zeros(3), np.ones(3), 0.0, 0.0) == (0.0, 0.0)


def test_nothing_is_printed(rows, capsys):
    ranges(rows, "percentile")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("method", ["min_max", "percentile", "entropy", "mse"])
def test_infinite_values_keep_their_range_and_are_named(rows, method):
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    mask = np.where(np.arange(32) % 2, np.float32(-np.inf), np.float32(0))
    model.graph.initializer.append(onnx.numpy_helper.from_array(mask, "mask"))
    nodes = [*model.graph.node]
    nodes[1].input[0] = "masked"
    nodes.insert(1, onnx.helper.make_node("Add", ["a", "mask"], ["masked"]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    found = activation_ranges(model, rows, method, 99.0)
    assert unbounded(found) == {"masked"}
    assert float(np.squeeze(found["masked"].lowest)) == -np.inf
    assert 0 < float(np.squeeze(found["inputs"].highest)) <= rows.max()


@pytest.mark.parametrize("sign", [1, -1])
def test_one_value_far_out_is_given_up_for_the_many(sign):
    values = np.append(np.random.default_rng(0).normal(size=50_000), 10) * sign
    low, high = values.min(), values.max()
    found = least_squares_range(values, np.ones(len(values)), low, high)
    assert np.ptp(found) < 0.95 * (high - low)
    assert squared_error(values, *found) < 0.95 * squared_error(values, low, high)
