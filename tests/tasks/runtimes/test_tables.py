import json

import numpy as np
import onnx
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from scipy.special import softmax

from tasks.runtimes import tables
from tasks.runtimes.tables import TableClassifier, encode

CLASSES = ["no", "yes"]
AGE = {"name": "age", "kind": "numeric", "mean": 40.0, "deviation": 8.0, "flag": True}
PAY = {"name": "pay", "kind": "numeric", "mean": -1.0, "deviation": 0.5, "flag": False}
TOWN = {"name": "town", "kind": "categorical", "categories": ["1", "bern", "oslo"]}
WITH_BOTH = TOWN | {"other": True, "missing": True}
WITH_NEITHER = TOWN | {"name": "home", "other": False, "missing": False}
COLUMNS = [AGE, PAY, WITH_BOTH, WITH_NEITHER]
FEATURES = 2 + 1 + 5 + 3

ROWS = [
    {"age": 48, "pay": 0.0, "town": "oslo", "home": "bern"},
    {"age": "32", "pay": "-1.5", "town": "rome", "home": "rome"},
    {"age": None, "pay": "", "town": None, "home": ""},
    {"age": float("nan"), "pay": -1.0, "town": " ", "home": 1.0},
]
ENCODED = [
    [1, 0, 2, 0, 0, 1, 0, 0, 0, 1, 0],
    [-1, 0, -1, 0, 0, 0, 1, 0, 0, 0, 0],
    [0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0],
    [0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0],
]


def weights():
    random = np.random.default_rng(0)
    return random.normal(size=(FEATURES, 2)).astype(np.float32), random.normal(size=2).astype("f")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An ONNX file written by hand, so that its answers can be computed by numpy."""
    folder = tmp_path_factory.mktemp("model")
    matrix, bias = weights()
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["inputs", "matrix", "bias"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(bias, "bias")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(made, folder / "model.onnx")
    (folder / "schema.json").write_text(json.dumps({"classes": CLASSES, "columns": COLUMNS}))
    return TableClassifier(folder)


def same(found, features):
    matrix, bias = weights()
    expected = softmax(np.asarray(features, float) @ matrix + bias, axis=1)
    assert list(found.columns) == ["label", "probability", "probabilities"]
    np.testing.assert_allclose(np.array(found["probabilities"].tolist()), expected, rtol=1e-4)
    assert found["label"].tolist() == [CLASSES[at] for at in expected.argmax(1)]
    np.testing.assert_allclose(found["probability"], expected.max(1), rtol=1e-4)


# The stated rule


@pytest.mark.parametrize("at", range(4))
def test_cells_become_the_numbers_written_by_hand(at):
    found = encode(ROWS[at], COLUMNS)
    assert found.dtype == np.float32
    assert found.tolist() == ENCODED[at]
    assert sum(tables.width(column) for column in COLUMNS) == len(found) == FEATURES


@pytest.mark.parametrize(
    "nothing", [None, "", "  ", float("nan"), np.float32("nan"), pd.NA, pd.NaT, np.nan]
)
def test_every_kind_of_nothing_is_missing(nothing):
    found = encode({"age": nothing, "pay": nothing, "town": nothing, "home": nothing}, COLUMNS)
    assert found.tolist() == ENCODED[2]


def test_a_text_that_says_nan_is_missing_among_numbers_and_a_name_among_names():
    found = encode({"age": "NaN", "pay": "nan", "town": "nan", "home": "nan"}, COLUMNS)
    assert found.tolist() == [0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("one", [1, 1.0, "1", " 1 ", np.int64(1), np.float64(1), np.float32(1)])
def test_a_number_in_a_categorical_column_is_the_same_in_every_type(one):
    assert encode(ROWS[0] | {"town": one}, COLUMNS)[3:8].tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("value", [48, 48.0, "48", " 4.8e1 ", np.int8(48), np.float32(48)])
def test_a_number_is_the_same_in_every_type(value):
    assert encode(ROWS[0] | {"age": value}, COLUMNS)[0] == 1


@pytest.mark.parametrize(
    "bad", ["old", "1_0", "inf", float("inf"), -np.inf, "12,5", [1], {"a": 1}, 10**400]
)
def test_what_is_no_finite_number_is_refused_by_column_and_value(bad):
    with pytest.raises(ValueError, match=r"column 'pay' is '.*', expected a finite number") as it:
        encode(ROWS[0] | {"pay": bad}, COLUMNS)
    assert str(bad)[:20] in str(it.value)
    assert len(str(it.value)) < 120


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_has_a_score_that_a_network_can_take(value):
    score = encode(ROWS[0] | {"pay": value}, COLUMNS)[2]
    assert score == np.float32(np.clip((value + 1) / 0.5, -1e4, 1e4))


def test_absent_columns_are_named_and_unknown_ones_passed_over():
    with pytest.raises(ValueError, match=r"the columns 'pay', 'home' are missing"):
        encode({"age": 1, "town": "x"}, COLUMNS)
    assert encode(ROWS[0] | {"shoe": object()}, COLUMNS).tolist() == ENCODED[0]


# Forms of input


def test_a_data_frame(model):
    frame = pd.DataFrame(ROWS).assign(note="x")
    same(model.predict(frame), ENCODED)
    same(model.predict(frame.iloc[::-1]), ENCODED[::-1])


def test_a_data_frame_of_numbers_only_has_floats_where_a_cell_is_empty(model):
    frame = pd.DataFrame({"age": [48, None], "pay": [0, 0], "town": [1, None], "home": [1, None]})
    assert frame["town"].dtype == float
    rows = [[1, 0, 2, 1, 0, 0, 0, 0, 1, 0, 0], [0, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0]]
    same(model.predict(frame), rows)


@pytest.mark.parametrize("kind", ["string", "category", "object"])
def test_a_data_frame_of_other_types(model, kind):
    frame = pd.DataFrame(ROWS[:2]).astype({"town": kind, "home": kind}).astype({"age": "Float64"})
    same(model.predict(frame), ENCODED[:2])


def test_a_list_of_dicts(model):
    same(model.predict(ROWS), ENCODED)


@pytest.mark.parametrize("at", range(4))
def test_one_dict(model, at):
    same(model.predict(ROWS[at]), ENCODED[at : at + 1])


def test_columns_in_a_dict(model):
    columns = {name: [row[name] for row in ROWS[:2]] for name in ROWS[0]}
    same(model.predict(columns), ENCODED[:2])
    same(model.predict({name: np.array(cells) for name, cells in columns.items()}), ENCODED[:2])


def test_a_dict_of_arrays_without_dimensions_is_one_row(model):
    same(model.predict({name: np.array(cell) for name, cell in ROWS[0].items()}), ENCODED[:1])


def test_json(model):
    text = [json.dumps(row) for row in ROWS]
    same(model.predict(text), ENCODED)
    same(model.predict([row.encode() for row in text]), ENCODED)
    same(model.predict(text[1]), ENCODED[1:2])


@pytest.mark.parametrize("nothing", [[], pd.DataFrame(), pd.DataFrame(columns=["age"])])
def test_nothing_in_nothing_out(model, nothing):
    found = model.predict(nothing)
    assert len(found) == 0
    assert list(found.columns) == ["label", "probability", "probabilities"]


def test_more_rows_than_a_batch_keep_their_order(model):
    same(model.predict(ROWS * (tables.BATCH_SIZE // 2 + 1)), ENCODED * (tables.BATCH_SIZE // 2 + 1))


def test_probabilities_of_encoded_rows(model):
    found = model.probabilities(np.asarray(ENCODED, np.float32))
    np.testing.assert_allclose(found, model.predict(ROWS)["probabilities"].tolist(), rtol=1e-6)


def test_large_logits_do_not_overflow(model, monkeypatch):
    monkeypatch.setattr(model, "logits", lambda rows: np.array([[1e4, -1e4]], np.float32))
    assert model.probabilities(np.zeros((1, FEATURES), np.float32)).tolist() == [[1, 0]]


# Refused inputs


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"age": 1, "pay": "x", "town": "", "home": ""}, "column 'pay' is 'x'"),
        ({"age": 1}, "the columns 'pay', 'town', 'home' are missing"),
        (7, "a row is of type int, expected a dict"),
        ([1, 2], "a row is of type list, expected a dict"),
        ("[1]", "a row is of type list, expected a dict"),
        ("no json", "Expecting value"),
        (b"\xff", "can't decode"),
    ],
)
def test_a_bad_row_is_named_by_its_position(model, bad, why):
    with pytest.raises(ValueError, match=f"^input 2: .*{why}"):
        model.predict([*ROWS[:2], bad, ROWS[3]])


def test_a_frame_without_a_column_is_refused(model):
    with pytest.raises(ValueError, match=r"^input 0: the columns 'town' are missing"):
        model.predict(pd.DataFrame(ROWS).drop(columns="town"))
