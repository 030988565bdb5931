import json
from datetime import date
from decimal import Decimal
from hashlib import sha256

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tasks.errors import DataError
from tasks.modalities.tables import Tables
from tasks.prepare import prepare
from tasks.rows import Rows
from tasks.runtimes import tables as runtime


def read(folder, **params):
    return list(Tables(**params).read(folder))


def cells(row):
    return json.loads(row.content)


def contents(*rows):
    return (json.dumps(row).encode() for row in rows)


def survey(*rows, **params):
    return Tables(**params).survey(contents(*rows))


def column(values, **params):
    """What a survey says of one column, and its cells encoded, (N, features)."""
    schema = survey(*({"x": value} for value in values), **params)
    rows = [Tables().encode(content, schema) for content in contents(*({"x": v} for v in values))]
    return schema["columns"][0], np.stack(rows)


# Files


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.csv").write_text("name,age,label,split\nAnn,30,yes,train\nBob,,no,\n,41,,test\n")
    table = pa.table({"age": [7.0, None], "name": ["Cé", ""], "label": ["no", None]})
    pq.write_table(table, tmp_path / "deep.parquet")
    (tmp_path / ".hidden.csv").write_text("age\n1\n")
    (tmp_path / "notes.txt").write_text("nothing")
    return tmp_path


def test_rows_state_labels_and_splits_in_a_fixed_order(folder):
    found = [(row.source, row.label, row.split) for row in read(folder)]
    assert found == [
        ("a.csv#0", "yes", "train"),
        ("a.csv#1", "no", None),
        ("a.csv#2", None, "test"),
        ("deep.parquet#0", "no", None),
        ("deep.parquet#1", None, None),
    ]


def test_a_rows_content_is_canonical_json_of_its_cells_as_the_file_gave_them(folder):
    assert [row.content.decode() for row in read(folder)] == [
        '{"age":"30","name":"Ann"}',
        '{"age":null,"name":"Bob"}',
        '{"age":"41","name":null}',
        '{"age":7.0,"name":"Cé"}',
        '{"age":null,"name":""}',
    ]


@pytest.mark.parametrize("order", ["abcdefgh", "hgfedcba", "dhcgbfae"])
def test_the_order_of_columns_does_not_change_a_row(tmp_path, order):
    header = ",".join(["label", *order])
    (tmp_path / "a.csv").write_text(f"{header}\n{header}\n")
    (row,) = read(tmp_path)
    assert (
        row.content
        == json.dumps({name: name for name in "abcdefgh"}, separators=(",", ":")).encode()
    )


def test_ignored_columns_are_no_part_of_a_row(folder):
    assert cells(read(folder, ignore=("name",))[0]) == {"age": "30"}


def test_another_column_may_hold_the_label(folder):
    found = read(folder, label_column="name")
    assert [row.label for row in found] == ["Ann", "Bob", None, "Cé", None]
    assert cells(found[0]) == {"age": "30", "label": "yes"}


def test_labels_of_other_types_are_texts_and_empty_ones_none(tmp_path):
    pq.write_table(pa.table({"x": [1, 2], "label": [3, 4]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [1, 2], "label": [float("nan"), 5]}), tmp_path / "b.parquet")
    assert [row.label for row in read(tmp_path)] == ["3", "4", None, "5.0"]


def test_a_file_without_labels_lies_beside_one_with_them(tmp_path):
    (tmp_path / "a.csv").write_text("x,label\n1,a\n")
    (tmp_path / "b.csv").write_text("x\n2\n")
    assert [row.label for row in read(tmp_path)] == ["a", None]


def test_parquet_keeps_its_types(tmp_path):
    table = {"a": [1], "b": [True], "c": [Decimal("1.5")], "d": [float("nan")], "e": ["x"]}
    pq.write_table(pa.table(table | {"label": ["y"]}), tmp_path / "a.parquet")
    assert cells(read(tmp_path)[0]) == {"a": 1, "b": True, "c": 1.5, "d": None, "e": "x"}


@pytest.mark.parametrize(
    ("value", "found"),
    [(date(2024, 1, 1), "date"), ([1, 2], "list"), (b"x", "bytes"), (float("inf"), "inf")],
)
def test_cells_that_are_neither_number_nor_text_are_refused_by_place(tmp_path, value, found):
    pq.write_table(
        pa.table({"x": [1, 2], "odd": [value] * 2, "label": ["a", "b"]}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match=rf"data/a\.parquet#0: 'odd' holds {found}, expected"):
        read(tmp_path)
    assert len(read(tmp_path, ignore=("odd",))) == 2


def test_columns_that_differ_between_files_are_named(folder):
    (folder / "z.csv").write_text("age,size,label\n1,2,yes\n")
    with pytest.raises(DataError, match=r"data/z\.csv and data/a\.csv .* columns 'name', 'size'"):
        read(folder)
    assert len(read(folder, ignore=("name", "size"))) == 6


@pytest.mark.parametrize("name", ["", "__index_level_0__"])
def test_saved_row_numbers_are_no_feature(tmp_path, name):
    frame = pd.DataFrame({"x": [1, 2], "label": ["a", "b"]}, index=[1, 4])
    if name:
        frame.to_parquet(tmp_path / "a.parquet")
    else:
        frame.to_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match=f"has the column '{name}', as pandas saves row numbers"):
        read(tmp_path)
    assert [cells(row) for row in read(tmp_path, ignore=(name,))] == [
        {"x": value if name else str(value)} for value in (1, 2)
    ]


def test_a_table_of_labels_alone_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("id,label\n1,a\n")
    with pytest.raises(DataError, match=r"data/a\.csv has no columns but \['id', 'label'\]"):
        read(tmp_path, ignore=("id",))


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"label_column": "lable"}, "label_column names 'lable', .*did you mean 'label'"),
        ({"ignore": ("agee",)}, "ignore names 'agee', .*did you mean 'age'"),
    ],
)
def test_a_misspelt_column_is_named_with_the_nearest(folder, params, why):
    with pytest.raises(DataError, match=f"prepare.modality.{why}"):
        read(folder, **params)


# Numeric columns

NUMBERS = [3, 1.5, "7", -2, " 4e0 ", True]


def test_scores_are_those_of_scikit_learn():
    found, rows = column(NUMBERS)
    values = np.array([[float(value)] for value in NUMBERS])
    reference = StandardScaler().fit(values)
    assert found["kind"] == "numeric"
    assert found["mean"] == pytest.approx(reference.mean_[0])
    assert found["deviation"] == pytest.approx(reference.scale_[0])
    np.testing.assert_allclose(rows, reference.transform(values), rtol=1e-6)


def test_missing_numbers_are_the_mean_and_flagged_as_scikit_learn_does():
    values = [4.0, None, 1.0, 9.0, None, 4.0]
    found, rows = column(values)
    imputer = SimpleImputer(add_indicator=True)
    reference = imputer.fit_transform(np.array(values, float)[:, None])
    present = np.array([[4.0], [1.0], [9.0], [4.0]])
    reference[:, :1] = StandardScaler().fit(present).transform(reference[:, :1])
    assert found["flag"] is True
    np.testing.assert_allclose(rows, reference, atol=1e-6)


def test_without_gaps_in_training_rows_there_is_no_flag():
    schema = survey({"x": 1}, {"x": 3})
    assert schema["shape"] == [1]
    assert Tables().encode(b'{"x": null}', schema).tolist() == [0]


@pytest.mark.parametrize("value", [0.1, 5, "-3", 1e300])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_constant_column_is_zero_everywhere(value, count):
    found, rows = column([value] * count)
    assert found["deviation"] == 1
    assert not rows.any()


def test_equal_numbers_written_in_two_ways_are_constant():
    found, rows = column(["0.1", "0.10", "1e-1"])
    assert found["deviation"] == 1
    assert not rows.any()


def test_a_column_without_any_value_is_flagged_everywhere():
    found, rows = column([None, "", "nan"])
    assert found == {"name": "x", "kind": "numeric", "mean": 0, "deviation": 1, "flag": True}
    assert rows.tolist() == [[0, 1]] * 3


@settings(max_examples=40)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30))
def test_any_numbers_have_finite_scores_no_larger_than_the_root_of_their_count(values):
    found, rows = column(values)
    assert found["deviation"] > 0
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() <= np.sqrt(len(values)) * 1.001 + 1e-6


@settings(max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_mean_and_deviation_are_numpys(values):
    found, _ = column(values)
    assert found["mean"] == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)
    if max(values) - min(values) > 1e-3:
        assert found["deviation"] == pytest.approx(np.std(values), rel=1e-6)


# Categorical columns


def test_places_are_those_of_scikit_learn():
    values = ["b"] * 5 + ["a"] * 4 + ["d"] * 3 + ["c"] * 2 + ["e"]
    found, rows = column(values, rare_below=2, categories=3)
    encoder = OneHotEncoder(min_frequency=2, max_categories=4, sparse_output=False)
    reference = encoder.fit_transform(np.array(values)[:, None])
    assert found["categories"] == ["a", "b", "d"]
    np.testing.assert_array_equal(rows, reference)


def test_one_word_makes_a_column_categorical():
    found, _ = column([1, "2", "x", 1.0], rare_below=1)
    assert found["kind"] == "categorical"
    assert found["categories"] == ["1", "2", "x"]


def test_as_frequent_categories_are_kept_by_name():
    found, _ = column(["c", "b", "a", "d", "d"], rare_below=1, categories=3)
    assert found["categories"] == ["a", "b", "d"]


def test_missing_categories_have_a_place_of_their_own():
    _, rows = column(["a", None, "b", "", "a", "b"])
    assert rows.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_what_no_training_row_taught_leaves_all_places_empty():
    schema = survey(*[{"x": "a"}, {"x": "b"}] * 2)
    assert schema["shape"] == [2]
    assert not Tables().encode(b'{"x": "new"}', schema).any()
    assert not Tables().encode(b'{"x": null}', schema).any()


def test_categories_named_like_the_special_places_are_apart_from_them():
    _, rows = column(["other", "missing", "other", "missing", "rare", None])
    assert len({row.tobytes() for row in rows}) == 4


# Rows


def test_the_schema_is_plain_and_tells_every_features_column():
    rows = [
        {"b": "x", "a": 1, "c": 2.5},
        {"b": "y", "a": None, "c": 1},
        {"b": None, "a": 3, "c": 1},
    ]
    schema = survey(*rows, rare_below=1)
    assert json.loads(json.dumps(schema)) == schema
    assert [found["name"] for found in schema["columns"]] == ["b", "a", "c"]
    assert schema["groups"] == [0, 0, 0, 1, 1, 2]
    assert schema["shape"] == [6]
    assert schema["dtype"] == "float32"


def test_changing_one_column_changes_its_group_alone():
    rows = [{"a": at, "b": "xyz"[at % 3], "c": None if at % 4 else at} for at in range(24)]
    schema = survey(*rows)
    groups = np.array(schema["groups"])
    row = {"a": 3, "b": "x", "c": 8}
    before = runtime.encode(row, schema["columns"])
    for at, (name, value) in enumerate({"a": 9, "b": "z", "c": None}.items()):
        changed = runtime.encode(row | {name: value}, schema["columns"]) != before
        assert changed.any()
        assert (groups[changed] == at).all()


def test_only_the_contents_that_it_is_shown_count():
    assert survey({"x": 1}, {"x": 3})["columns"][0]["mean"] == 2


def test_text_in_a_numeric_column_is_refused_by_column_and_value():
    schema = survey({"x": 1, "y": 2}, {"x": 3, "y": 1})
    with pytest.raises(ValueError, match="column 'x' is 'old', expected a finite number"):
        Tables().encode(b'{"x": "old", "y": 1}', schema)


@settings(max_examples=40)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "n": st.one_of(st.none(), st.integers(-(10**6), 10**6), st.floats(-9, 9)),
                "w": st.one_of(st.none(), st.text(max_size=4), st.integers(0, 3)),
            }
        ),
        min_size=1,
        max_size=12,
    )
)
def test_prepared_and_served_rows_have_the_same_bits(rows):
    schema = survey(*rows)
    frame = pd.DataFrame(rows, dtype=object)
    served = [runtime.encode(row, schema["columns"]) for row in frame.to_dict(orient="records")]
    for content, expected in zip(contents(*rows), served, strict=True):
        found = Tables().encode(content, schema)
        assert found.tobytes() == expected.tobytes()
        assert list(found.shape) == schema["shape"]


def test_networks_take_rows_as_they_are():
    stored = torch.randn(3, 5)
    assert Tables().to_network(stored) is stored


def test_its_runtime_is_the_file_that_serves():
    assert Tables().runtime.samefile(runtime.__file__)


# The data stage


@pytest.fixture
def project(tmp_path):
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"size": random.normal(5, 2, 120), "kind": random.choice([*"abc"], 120)})
    frame["label"] = np.where(frame["size"] > 5, "large", "small")
    frame.loc[::7, "kind"] = None
    frame.loc[100:, "label"] = None
    (tmp_path / "data").mkdir()
    frame.iloc[:60].to_csv(tmp_path / "data" / "a.csv", index=False)
    frame.iloc[60:].to_parquet(tmp_path / "data" / "b.parquet", index=False)
    return tmp_path


MODALITY = {"name": "tables"}


def test_tables_are_prepared(project, params):
    prepare(project, params(modality=MODALITY, labels_per_class=5))
    rows = Rows(project / "prepared")
    assert rows.classes == ["large", "small"]
    assert rows.encoding.input_shape == (5,)
    assert rows.train.inputs.dtype == np.float32
    assert rows.train.texts is None
    assert len(rows.train.contents) == len(rows.train)
    assert (rows.train.labels >= 0).sum() + len(rows.validation) == 10
    assert rows.train.inputs[:, 4].mean() == pytest.approx(0, abs=1e-6)
    assert rows.train.inputs[:, 4].std() == pytest.approx(1, rel=1e-6)
    assert rows.schema["groups"] == [0, 0, 0, 0, 1]
    assert rows.open_test().inputs[:, 4].mean() != pytest.approx(0, abs=1e-3)


def test_a_prepared_row_is_the_row_that_its_digest_names(project, params):
    prepare(project, params(modality=MODALITY))
    rows = Rows(project / "prepared")
    by_name = {sha256(row.content).hexdigest(): row for row in Tables().read(project / "data")}
    test = rows.open_test()
    for name, stored, label in zip(test.names, test.inputs, test.labels, strict=True):
        row = by_name[name]
        assert rows.classes[label] == row.label
        assert Tables().encode(row.content, rows.schema).tobytes() == stored.tobytes()


def test_a_test_row_that_cannot_be_encoded_is_refused_or_skipped(project, params):
    with (project / "data" / "a.csv").open("a") as stream:
        stream.write("huge,a,large\n")
    path = project / "data" / "b.parquet"
    split = pd.read_parquet(path).assign(split="train")
    split.to_parquet(path, index=False)
    first = pd.read_csv(project / "data" / "a.csv", dtype=str)
    first["split"] = ["train"] * 50 + ["test"] * 11
    first.to_csv(project / "data" / "a.csv", index=False)
    with pytest.raises(DataError, match=r"data/a\.csv#60: column 'size' is 'huge'"):
        prepare(project, params(modality=MODALITY))
    report = prepare(project, params(modality=MODALITY, unreadable="skip"))
    assert report["unreadable"] == ["a.csv#60"]
    assert len(Rows(project / "prepared").open_test()) == 10


def test_the_data_stage_reads_tables_without_torch(project, params, python):
    (project / "params.yaml").write_text(json.dumps({"prepare": params(modality=MODALITY).plain()}))
    program = "import sys, tasks.prepare as p; p.main(); sys.exit('torch' in sys.modules)"
    done = python("-c", program, cwd=project)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test"] > 0
