import csv
import io
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
from hypothesis import given
from hypothesis import strategies as st

from tasks.records import read
from tasks.removal import keep_others

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=6)


def values(path):
    return [row for _, row in read(path, path.name)]


@given(
    rows=st.lists(st.tuples(CELLS.filter(bool), CELLS), max_size=6),
    gone=st.sets(st.integers(0, 6)),
    ends=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    blank=st.booleans(),
)
def test_other_rows_of_a_csv_file_keep_their_bytes(rows, gone, ends, quoting, blank):
    def line(row):
        stream = io.StringIO(newline="")
        csv.writer(stream, lineterminator=ends, quoting=quoting).writerow(row)
        return (stream.getvalue() + (ends if blank else "")).encode()

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "rows.csv", Path(folder) / "left.csv"
        header = b"\xef\xbb\xbf" + line(["text", "label"])
        source.write_bytes(header + b"".join(map(line, rows)))
        before = values(source)
        assert len(before) == len(rows)
        kept = [row for at, row in enumerate(rows) if at not in gone]
        assert keep_others(source, gone, target) == len(kept)
        assert target.read_bytes() == header + b"".join(map(line, kept))
        assert values(target) == [row for at, row in enumerate(before) if at not in gone]


def test_a_last_line_without_an_end_is_a_row(tmp_path):
    source, target = tmp_path / "rows.csv", tmp_path / "left.csv"
    source.write_bytes(b"text,label\nfirst,1\nlast,2")
    assert keep_others(source, {0}, target) == 1
    assert target.read_bytes() == b"text,label\nlast,2"
    assert keep_others(source, {1}, target) == 1
    assert target.read_bytes() == b"text,label\nfirst,1\n"
    assert keep_others(source, {0, 1}, target) == 0


def test_a_parquet_file_keeps_types_and_metadata(tmp_path):
    source, target = tmp_path / "rows.parquet", tmp_path / "left.parquet"
    columns = {"number": pyarrow.array([1, None, 3], pyarrow.int16()), "image": [b"a", b"b", None]}
    table = pyarrow.table(columns).replace_schema_metadata({"made": "by hand"})
    pyarrow.parquet.write_table(table, source)
    assert keep_others(source, {1}, target) == 2
    left = pyarrow.parquet.read_table(target)
    assert left.schema.equals(table.schema, check_metadata=True)
    assert left.to_pylist() == [{"number": 1, "image": b"a"}, {"number": 3, "image": None}]
