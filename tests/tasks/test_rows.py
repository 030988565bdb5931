import io
import shutil
from hashlib import sha256

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from tasks.errors import DataError
from tasks.modalities.images import Images
from tasks.rows import HIDDEN, Rows


@pytest.fixture(scope="module")
def table(prepared):
    found = pyarrow.parquet.read_table(prepared / "manifest.parquet").to_pylist()
    return {row["row"]: row for row in found}


def names_where(table, **wanted):
    return {name for name, row in table.items() if all(row[k] == v for k, v in wanted.items())}


def labelled(table, **wanted):
    return {name for name in names_where(table, **wanted) if table[name]["label"] is not None}


def test_training_holds_every_training_row_and_shown_labels_only(rows, table):
    assert set(rows.train.names) == names_where(table, split="train")
    for name, label in zip(rows.train.names, rows.train.labels, strict=True):
        row = table[name]
        assert label == (rows.classes.index(row["label"]) if row["shown"] else HIDDEN)
    assert 0 < len(rows.train.labelled) < len(rows.train)
    assert len(labelled(table, split="train", shown=False)) > 0


def test_labelled_keeps_rows_and_labels_together(rows, table):
    part = rows.train.labelled
    assert set(part.names) == labelled(table, split="train", shown=True)
    assert [rows.classes[label] for label in part.labels] == [table[n]["label"] for n in part.names]
    assert len(part.inputs) == len(part.names) == len(part)


def test_validation_is_what_the_budget_shows(rows, table):
    assert set(rows.validation.names) == labelled(table, split="validation", shown=True)
    assert 0 < len(rows.validation) < len(names_where(table, split="validation"))


def test_the_test_split_is_opened_with_its_labels(rows, table):
    part = rows.open_test()
    assert set(part.names) == labelled(table, split="test")
    assert len(part) < len(names_where(table, split="test"))
    assert [rows.classes[label] for label in part.labels] == [table[n]["label"] for n in part.names]


def test_the_oracle_sees_every_training_label_and_no_test_row(rows, table):
    assert set(rows.open_oracle().names) == labelled(table, split="train")


def test_the_parts_share_no_row(rows):
    train, validation, test = (
        set(part.names) for part in (rows.train, rows.validation, rows.open_test())
    )
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_names_belong_to_their_pixels(rows, table, prepared):
    for part in (rows.train, rows.validation, rows.open_test()):
        for name, pixels in zip(part.names, part.inputs, strict=True):
            content = (prepared.parent / "data" / table[name]["source"]).read_bytes()
            assert sha256(content).hexdigest() == name
            expected = np.asarray(Image.open(io.BytesIO(content)))
            np.testing.assert_array_equal(pixels[:, :, 0], expected)


def test_shape_classes_and_modality_come_from_the_schema(rows):
    assert rows.shape == (8, 8, 1)
    assert rows.classes == ["h", "v"]
    assert rows.modality == Images()


@pytest.mark.parametrize("name", ["manifest.parquet", "rows.npy", "schema.json"])
def test_a_missing_file_is_named_with_the_cure(prepared, tmp_path, name):
    shutil.copytree(prepared, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing; run `dvc repro`"):
        Rows(tmp_path / "copy")
