import io
import shutil
from collections import Counter
from hashlib import sha256

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tasks.budget import LabelBudget, Redraw
from tasks.errors import DataError
from tasks.modalities.images import Images
from tasks.prepare import prepare
from tasks.rows import HIDDEN, Rows, place_of


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
    assert rows.encoding.input_shape == (8, 8, 1)
    assert rows.classes == rows.encoding.classes == ["h", "v"]
    assert rows.modality == rows.encoding.modality == Images()
    assert all(part.encoding == rows.encoding for part in (rows.train, rows.validation))


@pytest.mark.parametrize("name", ["manifest.parquet", "rows.npy", "schema.json"])
def test_a_missing_file_is_named_with_the_cure(prepared, tmp_path, name):
    shutil.copytree(prepared, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing; run `dvc repro`"):
        Rows(tmp_path / "copy")


# Other labels of the same rows

OWN = {"labels_per_class": 6, "validation_labels_per_class": 1}


def shown(part):
    """Row → class of those rows whose label is shown."""
    known = part.labelled
    return dict(zip(known.names.tolist(), known.labels.tolist(), strict=True))


def test_the_budget_is_the_one_that_the_rows_were_prepared_with(rows):
    assert rows.budget == LabelBudget(**OWN)


def test_the_same_budget_shows_the_same_labels(rows, prepared):
    again = Rows(prepared, Redraw(**OWN))
    np.testing.assert_array_equal(again.train.labels, rows.train.labels)
    assert shown(again.validation) == shown(rows.validation)


@pytest.mark.parametrize(
    "budget",
    [
        OWN | {"draw": 1},
        {"labels_per_class": 9, "validation_labels_per_class": 2},
        {"labels_per_class": None, "validation_labels_per_class": None},
    ],
)
def test_another_budget_shows_what_preparing_with_it_would(
    rows, prepared, params, tmp_path, budget
):
    shutil.copytree(prepared.parent / "data", tmp_path / "data")
    prepare(tmp_path, params(**budget))
    expected, found = Rows(tmp_path / "prepared"), Rows(prepared, Redraw(**budget))
    np.testing.assert_array_equal(found.train.names, expected.train.names)
    np.testing.assert_array_equal(found.train.labels, expected.train.labels)
    assert shown(found.validation) == shown(expected.validation)
    assert shown(found.train) != shown(rows.train)


def test_another_draw_moves_no_row_and_opens_no_test_label(rows, prepared):
    other = Rows(prepared, Redraw(**OWN, draw=1))
    np.testing.assert_array_equal(other.train.names, rows.train.names)
    np.testing.assert_array_equal(other.train.inputs, rows.train.inputs)
    assert set(other.open_test().names) == set(rows.open_test().names)
    assert not {*shown(other.train), *shown(other.validation)} & set(rows.open_test().names)
    assert Counter(shown(other.train).values()) == {0: 5, 1: 5}
    assert Counter(shown(other.validation).values()) == {0: 1, 1: 1}


def test_labels_that_do_not_suffice_for_a_redraw_are_refused(prepared):
    budget = Redraw(labels_per_class=500, validation_labels_per_class=None)
    with pytest.raises(DataError, match="labels_per_class asks for 500"):
        Rows(prepared, budget)


def test_shuffled_labels_belong_to_other_rows(rows, prepared):
    wrong = Rows(prepared, Redraw(**OWN, shuffled=True))
    right, dealt = shown(rows.train), shown(wrong.train)
    assert dealt.keys() == right.keys()
    assert Counter(dealt.values()) == Counter(right.values())
    assert dealt != right
    assert shown(Rows(prepared, Redraw(**OWN, shuffled=True)).train) == dealt
    # What a model is judged on stays as it is.
    assert shown(wrong.validation) == shown(rows.validation)
    assert shown(wrong.open_test()) == shown(rows.open_test())
    assert shown(wrong.open_oracle()) == shown(rows.open_oracle())


def test_where_all_labels_are_shown_nothing_is_copied(rows):
    part = rows.open_test()
    assert part.labelled is part
    assert rows.train.labelled is not rows.train


def test_rows_are_taken_in_the_order_asked_for(rows):
    part = rows.train
    found = part.take(np.array([3, 0]))
    assert found.names.tolist() == part.names[[3, 0]].tolist()
    assert (found.inputs == part.inputs[[3, 0]]).all()


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("cat/001.jpg", "cat"),
        ("train/cat/001.jpg", "train/cat"),
        ("rows.csv#7", "rows.csv"),
        ("photos.zip!train/cat/1.jpg", "photos.zip!train/cat"),
        ("seven.png", "."),
    ],
)
def test_a_rows_place_is_its_folder_or_its_file(source, place):
    assert place_of(source) == place


def test_every_test_row_has_a_source(rows):
    assert rows.test_sources.shape == rows.open_test().names.shape
    assert set(rows.test_sources) == {"h", "v"}


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory, params, png):
    """Rows of three classes; of `b` no label is ever shown."""
    root = tmp_path_factory.mktemp("zero_shot")
    random = np.random.default_rng(5)
    for at in range(90):
        path = root / "data" / "abc"[at % 3] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(random.integers(0, 256, (8, 8), dtype=np.uint8)))
    prepare(root, params(unseen_classes=["b"], labels_per_class=4))
    return root / "prepared"


def test_of_an_unseen_class_no_label_is_shown_but_its_rows_are_there(zero_shot):
    found = Rows(zero_shot)
    assert found.classes == ["a", "b", "c"]
    assert found.unseen == [1]
    known = Counter([*shown(found.train).values(), *shown(found.validation).values()])
    assert known == {0: 4, 2: 4}
    assert 1 in found.open_test().labels
    oracle = found.open_oracle()
    unseen = set(oracle.names[oracle.labels == 1].tolist())
    assert unseen
    assert unseen < set(found.train.names.tolist()) - shown(found.train).keys()


def test_a_redraw_keeps_unseen_classes_unseen(zero_shot):
    own = Rows(zero_shot).budget.model_dump()
    other = Rows(zero_shot, Redraw(**own | {"draw": 3}))
    assert set(shown(other.train).values()) == {0, 2}
    assert shown(other.train) != shown(Rows(zero_shot).train)


def test_without_unseen_classes_there_are_none(rows):
    assert rows.unseen == []


# The rows' own bytes


@pytest.fixture
def keeping(prepared, table, tmp_path):
    """The prepared rows, with their files' bytes beside them."""
    shutil.copytree(prepared, tmp_path / "prepared")
    files = [(prepared.parent / "data" / row["source"]).read_bytes() for row in table.values()]
    contents = pyarrow.table({"content": pyarrow.array(files, pyarrow.binary())})
    pyarrow.parquet.write_table(contents, tmp_path / "prepared" / "contents.parquet")
    return Rows(tmp_path / "prepared")


def test_contents_stay_with_their_rows(keeping):
    train = keeping.train
    for part in (train, train.labelled, train.first(), keeping.validation, keeping.open_test()):
        assert len(part.contents) == len(part)
        for name, content in zip(part.names, part.contents, strict=True):
            assert sha256(content).hexdigest() == name


def test_rows_without_contents_have_none(rows):
    for part in (rows.train, rows.train.labelled, rows.train.first(), rows.open_test()):
        assert part.contents is None


def test_the_first_row_alone_is_still_a_part(rows):
    one, train = rows.train.first(), rows.train
    assert len(one) == 1
    assert (one.names[0], one.labels[0]) == (train.names[0], train.labels[0])
    np.testing.assert_array_equal(one.inputs, train.inputs[:1])
    assert one.encoding == train.encoding
