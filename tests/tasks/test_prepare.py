import io
import json
import os
import zipfile
from collections import Counter
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.budget import LabelBudget
from tasks.errors import DataError
from tasks.lineage.digests import digests_of_folder
from tasks.modalities import RawRow
from tasks.modalities.images import Images
from tasks.prepare import budget_of, distinct_rows, prepare, split_of

GREY = np.random.default_rng(0).integers(0, 256, (200, 8, 8), dtype=np.uint8)


@pytest.fixture
def put(tmp_path, png):
    """Puts a file below data/: an array becomes a PNG."""

    def write(name, content):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else png(content))
        return path

    return write


@pytest.fixture
def some(put):
    """Fifteen pictures of `a` and fifteen of `b`."""
    for at in range(30):
        put(f"{'ab'[at % 2]}/{at:02}.png", GREY[at])


def manifest(root):
    return pq.read_table(root / "prepared" / "manifest.parquet").to_pylist()


def pixels(root):
    return np.load(root / "prepared" / "rows.npy")


def schema(root):
    return json.loads((root / "prepared" / "schema.json").read_text())


def pixels_of(root, path):
    """The stored row that is named by the digest of a file's bytes."""
    name = sha256(path.read_bytes()).hexdigest()
    (at,) = [at for at, row in enumerate(manifest(root)) if row["row"] == name]
    return pixels(root)[at]


def zipped(members, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def parquet(**columns):
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def refusal(root, params):
    with pytest.raises(DataError) as caught:
        prepare(root, params)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Where rows come from


def test_folders_by_class_and_a_pool(tmp_path, put, some, params):
    pool = [put(f"unlabelled/{at}.png", GREY[at]) for at in range(50, 60)]
    report = prepare(tmp_path, params())
    found = manifest(tmp_path)
    assert len(found) == 40
    for row in found:
        file = tmp_path / "data" / row["source"]
        assert row["row"] == sha256(file.read_bytes()).hexdigest()
        assert row["label"] == (None if file in pool else file.parent.name)
        assert row["split"] == split_of(row["row"], params())
    assert schema(tmp_path)["classes"] == ["a", "b"]
    assert [row["row"] for row in found] == sorted(row["row"] for row in found)
    labelled = Counter(row["split"] for row in found if row["label"])
    assert report["rows"]["test"] == labelled["test"]
    hidden = [row for row in found if row["split"] == "test" and not row["label"]]
    assert report["rows"]["held_out_unlabelled"] == len(hidden)
    assert report == json.loads((tmp_path / "prepared" / "report.json").read_text())


def test_rows_hold_the_pixels_of_the_file_with_their_digest(tmp_path, some, params):
    prepare(tmp_path, params())
    for file in sorted((tmp_path / "data").rglob("*.png")):
        expected = np.asarray(Image.open(file))[:, :, None]
        np.testing.assert_array_equal(pixels_of(tmp_path, file), expected)


def test_a_zip_gives_the_rows_of_its_folders(tmp_path, put, some, params, png):
    prepare(tmp_path, params())
    expected = {(row["row"], row["label"], row["split"]) for row in manifest(tmp_path)}
    before = pixels(tmp_path)
    files = sorted((tmp_path / "data").rglob("*.png"))
    members = {str(file.relative_to(tmp_path / "data")): file.read_bytes() for file in files}
    for file in files:
        file.unlink()
    put("all.zip", zipped(members | {"__MACOSX/a/._0.png": b"x", "a/.hidden.png": b"x"}))
    prepare(tmp_path, params())
    assert {(row["row"], row["label"], row["split"]) for row in manifest(tmp_path)} == expected
    np.testing.assert_array_equal(pixels(tmp_path), before)
    assert manifest(tmp_path)[0]["source"].startswith("all.zip!")


@pytest.mark.parametrize("hugging_face", [False, True])
def test_parquet_gives_rows_with_nullable_labels(tmp_path, put, params, png, hugging_face):
    images = [png(GREY[at]) for at in range(40)]
    labels = [None if at >= 30 else at % 2 for at in range(40)]
    column = [{"bytes": image, "path": None} for image in images] if hugging_face else images
    put("rows.parquet", parquet(image=column, label=labels))
    prepare(tmp_path, params())
    found = {row["row"]: row for row in manifest(tmp_path)}
    assert len(found) == 40
    for at, image in enumerate(images):
        row = found[sha256(image).hexdigest()]
        assert row["label"] == (None if labels[at] is None else str(labels[at]))
        assert row["source"] == f"rows.parquet#{at}"
    stored = pixels(tmp_path)[[row["source"] for row in manifest(tmp_path)].index("rows.parquet#7")]
    np.testing.assert_array_equal(stored[:, :, 0], GREY[7])


def test_parquet_splits_are_honoured(tmp_path, put, params, png):
    images = [png(GREY[at]) for at in range(20)]
    splits = ["test" if at < 6 else "train" if at < 12 else None for at in range(20)]
    put(
        "rows.parquet",
        parquet(image=images, label=["ab"[at % 2] for at in range(20)], split=splits),
    )
    prepare(tmp_path, params(validation_share=0.0))
    found = {row["source"]: row for row in manifest(tmp_path)}
    for at, split in enumerate(splits):
        row = found[f"rows.parquet#{at}"]
        assert row["split"] == (split or split_of(row["row"], params(validation_share=0.0)))


def test_an_npz_file_gives_its_rows(tmp_path, put, params):
    labels = np.array(["" if at >= 30 else "ab"[at % 2] for at in range(40)])
    splits = np.array(["test" if at < 6 else "train" if at < 12 else "" for at in range(40)])
    stream = io.BytesIO()
    np.savez(stream, images=GREY[:40], labels=labels, split=splits)
    put("digits.npz", stream.getvalue())
    report = prepare(tmp_path, params(validation_share=0.0))
    assert report["duplicates"] == []
    stored = {
        int(row["source"].removeprefix("digits.npz#")): (row, pixels)
        for row, pixels in zip(manifest(tmp_path), pixels(tmp_path), strict=True)
    }
    assert sorted(stored) == list(range(40))
    for at, (row, found) in stored.items():
        np.testing.assert_array_equal(found[:, :, 0], GREY[at])
        assert row["label"] == (labels[at] or None)
        assert row["split"] == (splits[at] or split_of(row["row"], params(validation_share=0.0)))


def test_train_and_test_folders_are_honoured(tmp_path, put, params):
    for at in range(80):
        put(f"{'test' if at < 20 else 'train'}/{'ab'[at % 2]}/{at}.png", GREY[at])
    prepare(tmp_path, params(validation_share=0.3))
    found = manifest(tmp_path)
    for row in found:
        stated = row["source"].split("/")[0]
        assert (row["split"] == "test") == (stated == "test")
        assert row["label"] == row["source"].split("/")[1]
    splits = Counter(row["split"] for row in found)
    assert splits["test"] == 20
    assert 5 < splits["validation"] < 33


def test_without_a_validation_share_train_folders_stay_whole(tmp_path, put, params):
    for at in range(40):
        put(f"{'test' if at < 10 else 'train'}/{'ab'[at % 2]}/{at}.png", GREY[at])
    prepare(tmp_path, params(validation_share=0.0))
    assert Counter(row["split"] for row in manifest(tmp_path)) == {"test": 10, "train": 30}


def test_other_files_and_hidden_ones_are_passed_over(tmp_path, put, some, params):
    put("a/notes.txt", b"not an image")
    put("a/.DS_Store.png", b"not an image")
    put(".cache/a/1.png", b"not an image")
    prepare(tmp_path, params())
    assert len(manifest(tmp_path)) == 30


def test_the_same_data_gives_the_same_bytes(tmp_path, some, params):
    prepare(tmp_path, params())
    before = digests_of_folder(tmp_path / "prepared")
    prepare(tmp_path, params())
    assert digests_of_folder(tmp_path / "prepared") == before


# What becomes of pixels


def test_mixed_sizes_take_the_most_common_side(tmp_path, put, some, params):
    wide = put("a/wide.png", np.full((4, 8), 255, np.uint8))
    tall = put("b/tall.png", np.full((16, 8), 255, np.uint8))
    large = put("b/large.png", np.full((24, 24), 77, np.uint8))
    prepare(tmp_path, params())
    assert schema(tmp_path)["shape"] == [8, 8, 1]
    expected = np.zeros((8, 8), np.uint8)
    expected[2:6] = 255
    np.testing.assert_array_equal(pixels_of(tmp_path, wide)[:, :, 0], expected)
    np.testing.assert_array_equal(pixels_of(tmp_path, tall)[:, :, 0], expected.T)
    assert (pixels_of(tmp_path, large) == 77).all()


def test_a_stated_side_and_channels_hold(tmp_path, some, params):
    prepare(tmp_path, params(modality={"name": "images", "side": 12, "channels": 3}))
    assert pixels(tmp_path).shape == (30, 12, 12, 3)
    assert schema(tmp_path)["modality"] == {"name": "images", "side": 12, "channels": 3}


def first_in(split, contents, chosen):
    """The first content whose digest puts it into a split."""
    return next(
        content for content in contents if split_of(sha256(content).hexdigest(), chosen) == split
    )


def colours(png):
    for seed in range(100):
        random = np.random.default_rng(seed)
        yield png(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))


def large_colours(png):
    for red in range(100, 200):
        yield png(np.full((20, 20, 3), [red, 99, 250], np.uint8))


def test_one_colour_training_image_makes_all_rows_rgb(tmp_path, put, some, params, png):
    content = first_in("train", colours(png), params())
    path = put("a/colour.png", content)
    grey = put("a/grey.png", GREY[100])
    prepare(tmp_path, params())
    assert schema(tmp_path)["channels"] == 3
    np.testing.assert_array_equal(
        pixels_of(tmp_path, path), np.asarray(Image.open(io.BytesIO(content)))
    )
    np.testing.assert_array_equal(pixels_of(tmp_path, grey), np.repeat(GREY[100][:, :, None], 3, 2))


@pytest.mark.parametrize("split", ["test", "validation"])
def test_rows_held_out_do_not_decide_what_rows_look_like(tmp_path, put, some, params, png, split):
    path = put("a/colour.png", first_in(split, large_colours(png), params()))
    prepare(tmp_path, params())
    assert schema(tmp_path)["shape"] == [8, 8, 1]
    assert (pixels_of(tmp_path, path) != 0).all()


def test_transparency_is_laid_over_white(tmp_path, put, some, params, png):
    def pictures():
        for blue in range(100):
            picture = np.zeros((8, 8, 4), np.uint8)
            picture[:, :4] = [200, 10, blue, 255]
            yield png(picture)

    content = first_in("train", pictures(), params())
    path = put("a/clear.png", content)
    prepare(tmp_path, params())
    found, stored = pixels_of(tmp_path, path), np.asarray(Image.open(io.BytesIO(content)))
    assert found.shape == (8, 8, 3)
    assert (found[:, :4] == stored[:, :4, :3]).all()
    assert (found[:, :4, :2] == [200, 10]).all()
    assert (found[:, 4:] == 255).all()


def test_sixteen_bits_become_eight(tmp_path, put, some, params):
    values = np.zeros((8, 8), np.uint16)
    values[0], values[1], values[2] = 65535, 25700, 257
    path = put("a/deep.png", values)
    prepare(tmp_path, params())
    assert schema(tmp_path)["channels"] == 1
    assert pixels_of(tmp_path, path)[:4, 0, 0].tolist() == [255, 100, 1, 0]


# What is written beside them


def test_the_schema_states_the_label_budget_alone(tmp_path, some, params):
    chosen = params(labels_per_class=3, draw=7, unreadable="skip")
    prepare(tmp_path, chosen)
    assert schema(tmp_path)["budget"] == {
        "labels_per_class": 3,
        "validation_labels_per_class": None,
        "draw": 7,
        "unseen_classes": [],
    }
    assert budget_of(chosen).plain() == schema(tmp_path)["budget"]
    assert type(budget_of(chosen)) is LabelBudget


def test_unseen_classes_stay_classes_of_which_no_label_is_shown(tmp_path, put, some, params):
    for at in range(30, 45):
        put(f"c/{at}.png", GREY[at])
    prepare(tmp_path, params(unseen_classes=["b"]))
    assert schema(tmp_path)["classes"] == ["a", "b", "c"]
    assert schema(tmp_path)["budget"]["unseen_classes"] == ["b"]
    assert {row["label"] for row in manifest(tmp_path) if row["shown"]} == {"a", "c"}


def test_an_unknown_unseen_class_is_refused(tmp_path, some, params):
    message = refusal(tmp_path, params(unseen_classes=["bb"]))
    assert "prepare.unseen_classes names 'bb'" in message
    assert "did you mean 'b'?" in message


class Keeping(Images):
    """Images that keep their files' bytes, stored as shares."""

    keeps_contents = True

    def survey(self, contents):
        return super().survey(contents) | {"dtype": "float32"}

    def encode(self, content, schema):
        if content == b"broken":
            raise ValueError("broken")
        return super().encode(content, schema) / np.float32(255)


def keeping(params, **changes):
    return params(**changes).model_copy(update={"modality": Keeping()})


def test_contents_are_kept_in_the_rows_order_where_the_modality_wants_them(
    tmp_path, put, some, params
):
    put("a/again.png", GREY[0])
    put("a/broken.png", b"broken")
    prepare(tmp_path, keeping(params, unreadable="skip"))
    found = pq.read_table(tmp_path / "prepared" / "contents.parquet")["content"].to_pylist()
    assert [sha256(content).hexdigest() for content in found] == [
        row["row"] for row in manifest(tmp_path)
    ]
    assert len(found) == len(pixels(tmp_path)) == 30


def test_contents_are_left_out_elsewhere(tmp_path, some, params):
    prepare(tmp_path, params())
    assert {path.name for path in (tmp_path / "prepared").iterdir()} == {
        "manifest.parquet",
        "report.json",
        "rows.npy",
        "schema.json",
    }
    assert pixels(tmp_path).dtype == np.uint8


@pytest.mark.parametrize("unreadable", ["refuse", "skip"])
def test_rows_have_the_dtype_that_the_schema_states(tmp_path, put, some, params, unreadable):
    if unreadable == "skip":
        put("a/broken.png", b"broken")
    prepare(tmp_path, keeping(params, unreadable=unreadable))
    assert pixels(tmp_path).dtype == np.float32
    (path,) = (tmp_path / "data" / "a").glob("00.png")
    np.testing.assert_array_equal(pixels_of(tmp_path, path)[:, :, 0], GREY[0] / np.float32(255))


# What is refused


def test_a_corrupt_and_a_truncated_image_are_named(tmp_path, put, some, params, png):
    put("a/corrupt.png", b"these are not pixels")
    put("b/cut.png", png(GREY[90])[:-40])
    message = refusal(tmp_path, params())
    assert "data/a/corrupt.png" in message
    assert "data/b/cut.png" in message
    assert "skip" in message
    assert not (tmp_path / "prepared").exists()


def test_a_corrupt_header_is_named_too(tmp_path, put, some, params):
    put("a/broken.pgm", b"P5\n8 x8\n255\n" + bytes(64))
    assert "data/a/broken.pgm" in refusal(tmp_path, params())


def test_skipped_rows_leave_rows_and_manifest_aligned(tmp_path, put, some, params, png):
    for at in range(5):
        put(f"a/cut{at}.png", png(GREY[90 + at])[:-40])
    report = prepare(tmp_path, params(unreadable="skip"))
    assert report["unreadable"] == [f"a/cut{at}.png" for at in range(5)]
    assert len(pixels(tmp_path)) == len(manifest(tmp_path)) == 30
    for file in sorted((tmp_path / "data").rglob("[0-9]*.png")):
        expected = np.asarray(Image.open(file))[:, :, None]
        np.testing.assert_array_equal(pixels_of(tmp_path, file), expected)


def test_many_unreadable_rows_are_counted_not_all_listed(tmp_path, put, some, params):
    for at in range(9):
        put(f"a/bad{at}.png", b"bad %d" % at)
    message = refusal(tmp_path, params())
    assert "and 4 more" in message
    assert message.count("data/a/bad") == 5


def test_a_refusal_leaves_what_was_prepared_before(tmp_path, put, some, params):
    prepare(tmp_path, params())
    before = digests_of_folder(tmp_path / "prepared")
    put("a/corrupt.png", b"these are not pixels")
    refusal(tmp_path, params())
    assert digests_of_folder(tmp_path / "prepared") == before


def test_duplicates_are_merged_and_reported(tmp_path, put, some, params):
    put("a/again.png", GREY[0])
    put("unlabelled/once_more.png", GREY[1])
    report = prepare(tmp_path, params())
    assert len(manifest(tmp_path)) == len(pixels(tmp_path)) == 30
    pairs = [set(pair.split(" = ")) for pair in report["duplicates"]]
    assert {"a/00.png", "a/again.png"} in pairs
    assert {"b/01.png", "unlabelled/once_more.png"} in pairs
    assert len(pairs) == 2


@pytest.mark.parametrize("pool", ["A_unlabelled.zip", "unlabelled/x.png"])
def test_a_duplicate_in_the_pool_takes_the_label(tmp_path, put, some, params, png, pool):
    # One source sorts before the labelled file, the other after it.
    content = png(GREY[1])
    put(pool, zipped({"unlabelled/x.png": content}) if pool.endswith("zip") else content)
    prepare(tmp_path, params())
    (row,) = [row for row in manifest(tmp_path) if row["row"] == sha256(content).hexdigest()]
    assert row["label"] == "b"


def test_a_row_in_train_and_test_is_a_test_row(tmp_path, put, params, png):
    for at in range(40):
        put(f"{'test' if at < 10 else 'train'}/{'ab'[at % 2]}/{at}.png", GREY[at])
    put("first.zip", zipped({"train/a/copy.png": png(GREY[0])}))  # read before test/
    put("test/b/copy.png", GREY[21])  # read before train/
    prepare(tmp_path, params())
    splits = {row["row"]: row["split"] for row in manifest(tmp_path)}
    assert splits[sha256(png(GREY[0])).hexdigest()] == "test"
    assert splits[sha256(png(GREY[21])).hexdigest()] == "test"


def test_one_content_with_two_labels_is_refused(tmp_path, put, some, params):
    put("b/twin.png", GREY[0])
    message = refusal(tmp_path, params())
    for part in ("a/00.png", "'a'", "b/twin.png", "'b'", "two labels"):
        assert part in message


def test_one_class_is_refused(tmp_path, put, params):
    for at in range(20):
        put(f"only/{at}.png", GREY[at])
    message = refusal(tmp_path, params())
    assert "1 class ('only')" in message
    assert "2 or more" in message


def test_a_pool_without_labels_is_refused(tmp_path, put, params):
    put("unlabelled/0.png", GREY[0])
    assert "0 class (none)" in refusal(tmp_path, params())


def test_missing_data_is_refused(tmp_path, params):
    message = refusal(tmp_path, params())
    assert "data/ is missing" in message
    assert "dvc pull" in message


def test_empty_data_is_refused(tmp_path, params):
    (tmp_path / "data" / "a").mkdir(parents=True)
    assert "data/ is empty" in refusal(tmp_path, params())


def test_data_without_images_is_refused(tmp_path, put, params):
    put("a/readme.txt", b"no image")
    assert "holds no rows" in refusal(tmp_path, params())


def test_an_image_outside_class_folders_is_named(tmp_path, put, some, params):
    put("lost.png", GREY[99])
    message = refusal(tmp_path, params())
    assert "'lost.png' lies in no class folder" in message
    assert "data/unlabelled/lost.png" in message


def test_an_image_loose_in_train_is_in_no_class_folder_either(tmp_path, put, some, params):
    put("train/a/inside.png", GREY[98])
    put("train/lost.png", GREY[99])
    assert "train/lost.png" in refusal(tmp_path, params())


def test_too_few_labels_name_the_class_what_was_found_and_what_was_asked(
    tmp_path, put, some, params
):
    scarce = [put(f"scarce/{at}.png", GREY[100 + at]) for at in range(6)]
    chosen = params(labels_per_class=8)
    digests = [sha256(path.read_bytes()).hexdigest() for path in scarce]
    usable = sum(split_of(digest, chosen) != "test" for digest in digests)
    message = refusal(tmp_path, chosen)
    assert f"class 'scarce' has {usable} labels to show" in message
    assert "asks for 8" in message


# Splits


def raw_rows(draw_split):
    contents = st.lists(st.binary(min_size=1, max_size=12), unique=True, min_size=1, max_size=30)
    return contents.flatmap(
        lambda found: st.tuples(
            *[
                st.builds(
                    RawRow,
                    st.just(f"file {at}"),
                    st.just(content),
                    st.sampled_from("ab"),
                    draw_split,
                )
                for at, content in enumerate(found)
            ]
        )
    )


def splits(rows, chosen):
    return {row.digest: row.split for row in distinct_rows(rows, chosen)[0]}


@given(
    rows=raw_rows(st.sampled_from([None, "train", "test"])),
    share=st.floats(0.05, 0.5),
    data=st.data(),
)
def test_adding_rows_moves_no_other_row(params, rows, share, data):
    chosen = params(test_share=share, validation_share=share / 2)
    some = data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1))
    before = splits([row for at, row in enumerate(rows) if at in some], chosen)
    after = splits(rows, chosen)
    assert {digest: after[digest] for digest in before} == before


@given(rows=raw_rows(st.none()), label=st.sampled_from(["a", "z", None]), order=st.randoms())
def test_a_split_depends_on_content_alone(params, rows, label, order):
    changed = [RawRow(f"moved/{row.source}", row.content, label, None) for row in rows]
    order.shuffle(changed)
    assert splits(changed, params()) == splits(rows, params())


@given(contents=st.sets(st.binary(max_size=8), min_size=1, max_size=30))
def test_a_higher_test_share_only_adds_test_rows(params, contents):
    rows = [RawRow(content.hex(), content, "a", None) for content in contents]
    small, large = splits(rows, params(test_share=0.2)), splits(rows, params(test_share=0.5))
    assert all(large[name] == "test" for name, split in small.items() if split == "test")


@pytest.mark.parametrize(("test", "validation"), [(0.1, 0.0), (0.3, 0.2), (0.5, 0.1)])
def test_shares_are_roughly_respected(params, test, validation):
    chosen = params(test_share=test, validation_share=validation)
    count = 4000
    names = (sha256(b"%d" % at).hexdigest() for at in range(count))
    found = Counter(split_of(name, chosen) for name in names)
    for split, share in (("test", test), ("validation", validation)):
        spread = 5 * (share * (1 - share) / count) ** 0.5
        assert found[split] / count == pytest.approx(share, abs=max(spread, 1e-9))


# As a command


def run_stage(root, python, text=None, **changes):
    tree = {
        "modality": {"name": "images"},
        "test_share": 0.3,
        "validation_share": 0.1,
        "labels_per_class": None,
        "validation_labels_per_class": None,
    }
    text = yaml.safe_dump({"prepare": tree | changes}) if text is None else text
    (root / "params.yaml").write_text(text)
    return python("-m", "tasks.prepare", cwd=root)


def test_as_a_command_it_prepares_and_says_what_there_is(tmp_path, some, python):
    done = run_stage(tmp_path, python)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "prepared" / "report.json").read_text())
    assert json.loads(done.stdout) == report["rows"]


def test_as_a_command_it_answers_a_bad_parameter_with_one_line(tmp_path, some, python):
    done = run_stage(tmp_path, python, labels_per_clas=10)
    assert done.returncode == os.EX_DATAERR
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("stillmark: params.yaml: unknown parameter 'prepare.labels_per_clas'")
    assert "did you mean 'labels_per_class'?" in line
    assert not (tmp_path / "prepared").exists()


def test_as_a_command_it_answers_bad_data_with_one_line(tmp_path, put, some, python):
    put("a/corrupt.png", b"these are not pixels")
    done = run_stage(tmp_path, python)
    assert done.returncode == os.EX_DATAERR
    (line,) = done.stderr.splitlines()
    assert line.startswith("stillmark: unreadable: data/a/corrupt.png")


@pytest.mark.parametrize("text", ["", "project: x\n", "- a list\n", "prepare: [\n"])
def test_as_a_command_it_answers_a_file_it_cannot_use_with_one_line(tmp_path, some, python, text):
    done = run_stage(tmp_path, python, text)
    assert done.returncode == os.EX_DATAERR
    (line,) = done.stderr.splitlines()
    assert line.startswith("stillmark: params.yaml")


def test_as_a_command_it_answers_a_missing_file_with_one_line(tmp_path, some, python):
    done = python("-m", "tasks.prepare", cwd=tmp_path)
    assert done.returncode == os.EX_DATAERR
    (line,) = done.stderr.splitlines()
    assert line.startswith("stillmark: ")
    assert "params.yaml" in line


def test_it_starts_without_the_heavy_libraries(python):
    heavy = "{'torch', 'mlflow', 'prefect', 'dvc', 'onnxruntime', 'pandas'}"
    done = python("-c", f"import sys, tasks.prepare; print({heavy} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr
