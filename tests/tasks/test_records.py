import csv

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import records
from tasks.errors import DataError

CELL = st.text(st.characters(codec="utf-8"), max_size=8)


@pytest.fixture
def table(tmp_path):
    """Writes a CSV file and reads it back."""

    def read(content, name="rows.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(records.read(path, name))

    return read


def test_files_come_in_order_with_their_names(tmp_path):
    for name in ("b.csv", "a/2.txt", "a/10.txt", ".hidden", ".git/x.csv", "a/.b/c.csv", "a.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = list(records.files(tmp_path))
    assert [name for name, _ in found] == ["a/10.txt", "a/2.txt", "a.csv", "b.csv"]
    assert all(path == tmp_path / name for name, path in found)


# CSV


def test_rows_are_numbered_and_hold_text_by_column(table):
    assert table("text,label\nhello,a\n1.50,\n") == [
        ("rows.csv#0", {"text": "hello", "label": "a"}),
        ("rows.csv#1", {"text": "1.50", "label": None}),
    ]


@pytest.mark.parametrize("name", ["rows.csv", "ROWS.CSV"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_ways_to_write_the_same_file(table, name, start, end):
    rows = table(start + b"text,label" + end + '"é, ""so""",b'.encode() + end, name)
    assert [row for _, row in rows] == [{"text": 'é, "so"', "label": "b"}]


def test_a_quoted_field_may_hold_lines(table):
    assert table('text,label\n"one\ntwo",a\nthree,b\n')[0][1]["text"] == "one\ntwo"


def test_blank_lines_and_a_header_alone_are_no_rows(table):
    assert len(table("text,label\n\nhello,a\n\n")) == 1
    assert table("text,label\n") == []
    assert table("") == []


@pytest.mark.parametrize(("line", "fields"), [("three", 1), ("three,c,x", 3)])
def test_a_line_with_another_number_of_fields_is_named(table, line, fields):
    with pytest.raises(DataError, match=r"data/rows\.csv, line 4: .* the header's 2; mend"):
        table(f'text,label\n"one\ntwo",a\n{line}\nfour,d\n')


@pytest.mark.parametrize(
    "content", [b"text,label\ncaf\xe9,a\n", b'text,label\n"a"b,c\n', b'text,label\n"open,a\n']
)
def test_what_is_no_csv_is_named(table, content):
    with pytest.raises(DataError, match=r"data/rows\.csv is not a CSV file in UTF-8 \(.*; save"):
        table(content)


@given(rows=st.lists(st.tuples(CELL, CELL), max_size=6))
def test_what_a_csv_writer_writes_is_read_again(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "label"), *rows])
    found = [(row["text"] or "", row["label"] or "") for _, row in records.read(path, path.name)]
    assert found == rows


# Parquet


def test_values_keep_their_types_over_row_groups(tmp_path):
    columns = {"text": ["a", None, ""], "label": [3, None, 1], "score": [0.5, 1.5, None]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=2)
    found = list(records.read(tmp_path / "rows.parquet", "some/rows.parquet"))
    assert found == [
        ("some/rows.parquet#0", {"text": "a", "label": 3, "score": 0.5}),
        ("some/rows.parquet#1", {"text": None, "label": None, "score": 1.5}),
        ("some/rows.parquet#2", {"text": "", "label": 1, "score": None}),
    ]


@pytest.mark.parametrize("keep", [0, 4, -10])
def test_a_cut_table_is_named(tmp_path, keep):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a", "b"]}), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"data/rows\.parquet is not a whole Parquet file"):
        list(records.read(path, path.name))


# Label and split


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, (None, None)),
        ({"label": None, "split": None}, (None, None)),
        ({"label": "", "split": ""}, (None, None)),
        ({"label": float("nan")}, (None, None)),
        ({"label": "a", "split": "train"}, ("a", "train")),
        ({"label": 0, "split": "test"}, ("0", "test")),
        ({"label": False}, ("False", None)),
        ({"label": " a"}, (" a", None)),
    ],
)
def test_label_and_split(row, expected):
    assert records.label_and_split(row, "rows.csv#0") == expected


@pytest.mark.parametrize("split", ["dev", "Train", "validation"])
def test_another_split_is_named(split):
    with pytest.raises(DataError, match=rf"data/rows\.csv#7: 'split' is '{split}', expected"):
        records.label_and_split({"split": split}, "rows.csv#7")
