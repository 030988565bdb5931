import hashlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.lineage.row_sets import SPLITS, RowSets, packed, read_manifest, rows_of_source


def digest_of(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


@pytest.fixture
def manifest(tmp_path):
    def write(rows, name="manifest.parquet"):
        table = pyarrow.table(
            {
                "row": [row for row, _, _ in rows],
                "split": [split for _, split, _ in rows],
                "source": [source for _, _, source in rows],
            }
        )
        pyarrow.parquet.write_table(table, tmp_path / name)
        return tmp_path / name

    return write


def test_a_manifest_is_found_again_row_by_row(manifest, tmp_path):
    rows = [(digest_of(at), SPLITS[at % 3], f"{at}.png") for at in range(300)]
    sets = RowSets(tmp_path / "rows")
    assert sets.open("m") is None
    sets.keep("m", *read_manifest(manifest(rows)))
    kept = sets.open("m")
    assert len(kept) == 300
    for row, split, _ in rows:
        assert list(kept.starting_with(row)) == [(row, split)]
    assert list(kept.starting_with(digest_of("none of them"))) == []
    sets.clear()
    assert sets.open("m") is None


hexes = st.text("0f8", min_size=64, max_size=64)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.dictionaries(hexes, st.sampled_from(SPLITS), min_size=1, max_size=30), data=st.data()
)
def test_prefixes_and_sets_agree_with_a_plain_search(rows, data, tmp_path_factory):
    """Digests that end or begin with zero bytes, too: numpy drops those when it reads strings."""
    sets = RowSets(tmp_path_factory.mktemp("rows"))
    numbers = np.asarray([SPLITS.index(split) for split in rows.values()], np.uint8)
    sets.keep("m", packed(list(rows)), numbers)
    kept = sets.open("m")
    prefix = data.draw(st.sampled_from(sorted(rows)))[: data.draw(st.integers(1, 64))]
    expected = sorted((row, split) for row, split in rows.items() if row.startswith(prefix))
    assert list(kept.starting_with(prefix)) == expected
    some = data.draw(st.lists(st.sampled_from(sorted(rows)) | hexes, max_size=5))
    assert kept.splits_of(packed(some)) == {rows[row] for row in some if row in rows}


def test_no_rows_are_rows_too(tmp_path):
    sets = RowSets(tmp_path)
    sets.keep("m", packed([]), np.zeros(0, np.uint8))
    kept = sets.open("m")
    assert len(kept) == 0
    assert kept.splits_of(packed([digest_of(1)])) == set()
    assert list(kept.starting_with("0" * 8)) == []


@pytest.mark.parametrize("size", [0, 10, 24, 40, 100])
def test_a_torn_file_counts_as_missing(tmp_path, size):
    sets = RowSets(tmp_path)
    sets.keep("m", packed([digest_of(at) for at in range(5)]), np.zeros(5, np.uint8))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:size])
    assert sets.open("m") is None
    path.write_bytes(b"something else entirely" * 100)
    assert sets.open("m") is None


@pytest.mark.parametrize(
    "row", ["", "12", "g" * 64, None], ids=["empty", "short", "no hex", "null"]
)
def test_what_is_no_manifest_is_named(manifest, row):
    path = manifest([(row, "train", "a.png")])
    with pytest.raises(DataError, match=r"manifest\.parquet .*restore the file"):
        read_manifest(path)


def test_another_split_another_file_and_no_file_are_named(manifest, tmp_path):
    for path in (
        manifest([(digest_of(1), "elsewhere", "a.png")]),
        tmp_path / "missing.parquet",
    ):
        with pytest.raises(DataError, match=r"is not a row manifest"):
            read_manifest(path)
    text = tmp_path / "text.parquet"
    text.write_text("no parquet")
    for read in (read_manifest, lambda path: rows_of_source(path, "a.png")):
        with pytest.raises(DataError, match=r"text\.parquet is not a row manifest"):
            read(text)


def test_rows_of_a_file_a_table_and_a_folder(manifest):
    path = manifest(
        [
            ("a", "train", "cat/1.png"),
            ("b", "train", "cat/1.png.png"),
            ("c", "train", "dog/1.png"),
            ("d", "train", "more.csv#0"),
            ("e", "train", "more.csv#1"),
            ("f", "train", "cats/1.png"),
        ]
    )
    assert rows_of_source(path, "cat/1.png") == ["a"]
    assert rows_of_source(path, "cat") == ["a", "b"]
    assert rows_of_source(path, "more.csv") == ["d", "e"]
    assert rows_of_source(path, "more.csv#1") == ["e"]
    assert rows_of_source(path, "") == ["a", "b", "c", "d", "e", "f"]
    assert rows_of_source(path, "mouse") == []
