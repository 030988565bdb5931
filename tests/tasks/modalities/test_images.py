import io
import zipfile
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tasks.errors import DataError
from tasks.modalities.images import Images
from tasks.runtimes import images as runtime

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)


def encoded(width, height, mode="L"):
    stream = io.BytesIO()
    Image.new(mode, (width, height)).save(stream, "PNG")
    return stream.getvalue()


def read(folder):
    return [(row.source, row.label, row.split) for row in Images().read(folder)]


@pytest.fixture
def folder(tmp_path, png):
    for name in (
        "b/2.png",
        "a/1.PNG",
        "unlabelled/0.jpeg",
        "test/a/3.png",
        "train/unlabelled/4.bmp",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(NOISE[:8, :8]))
    return tmp_path


def test_paths_state_labels_and_splits_in_a_fixed_order(folder):
    assert read(folder) == [
        ("a/1.PNG", "a", None),
        ("b/2.png", "b", None),
        ("test/a/3.png", "a", "test"),
        ("train/unlabelled/4.bmp", None, "train"),
        ("unlabelled/0.jpeg", None, None),
    ]


def test_folders_inside_a_class_belong_to_it(tmp_path, png):
    path = tmp_path / "cat" / "dog" / "1.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(png(NOISE[:8, :8]))
    assert read(tmp_path) == [("cat/dog/1.png", "cat", None)]


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ([8, 8, 30], 8),
        ([10, 10], 8),
        ([11], 12),
        ([3], 8),
        ([100, 100, 8], 32),
        ([8, 20], 20),
        ([], 32),
    ],
)
def test_auto_takes_the_commonest_longer_side(sides, expected):
    contents = (encoded(side, max(1, side // 2)) for side in sides)
    assert Images().survey(contents)["side"] == expected


def test_auto_is_grey_only_where_every_image_is():
    grey = [encoded(8, 8, mode) for mode in ("L", "1", "LA", "I;16")]
    assert Images().survey(iter(grey))["channels"] == 1
    assert Images().survey(iter([*grey, encoded(8, 8, "RGB")]))["channels"] == 3


def test_stated_sizes_are_kept():
    assert Images(side=20, channels=3).survey(iter([encoded(8, 8)])) == {
        "side": 20,
        "channels": 3,
        "shape": [20, 20, 3],
    }


@pytest.mark.parametrize(
    "content",
    [b"", b"nothing", encoded(8, 8)[:20], b"P5\n8 x8\n255\n" + bytes(64)],
    ids=["empty", "text", "cut", "bad header"],
)
def test_a_survey_passes_over_what_cannot_be_read(content):
    found = Images().survey(iter([content, encoded(12, 12)]))
    assert found["shape"] == [12, 12, 1]


def test_an_archive_that_is_cut_is_named(tmp_path):
    (tmp_path / "all.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"data/all\.zip"):
        read(tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_with_damaged_bytes_is_named(tmp_path, compression):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/0.png", (NOISE % 40).tobytes())
    whole = path.read_bytes()
    for at in range(50, 2000, 150):
        damage = bytes(255 - value for value in whole[at : at + 8])
        path.write_bytes(whole[:at] + damage + whole[at + 8 :])
        with pytest.raises(DataError, match=r"data/all\.zip"):
            read(tmp_path)


def test_a_table_that_is_cut_is_named(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"data/rows\.parquet"):
        read(tmp_path)


def test_a_table_with_damaged_pages_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pa.table({"image": [NOISE[:8].tobytes(), NOISE.tobytes()], "label": ["a", "b"]})
    pq.write_table(table, path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data/rows\.parquet"):
        read(tmp_path)


def test_a_table_without_images_says_what_it_holds(tmp_path):
    pq.write_table(pa.table({"picture": [b"x"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"columns \['picture'\], expected 'image'"):
        read(tmp_path)


def test_a_table_row_without_bytes_is_named(tmp_path):
    table = pa.table({"image": pa.array([b"x", None], pa.binary())})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"data/rows\.parquet#1: 'image' holds NoneType"):
        read(tmp_path)


def test_a_table_row_with_another_split_is_named(tmp_path):
    table = pa.table({"image": [b"x"], "split": ["dev"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet#0: 'split' is 'dev'"):
        read(tmp_path)


# NPZ files


def npz(folder, **arrays):
    """Writes `all.npz` and says what is read from it."""
    folder.mkdir(exist_ok=True)
    np.savez(folder / "all.npz", **arrays)
    return list(Images().read(folder))


def pixels_in(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    ("shape", "mode"),
    [((8, 8), "L"), ((5, 9, 1), "L"), ((9, 5, 3), "RGB"), ((1, 1, 4), "RGBA"), ((200, 330), "L")],
)
def test_an_npz_files_images_come_back_as_they_were(tmp_path, shape, mode):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    found = npz(tmp_path, images=images)
    assert [row.source for row in found] == ["all.npz#0", "all.npz#1", "all.npz#2"]
    assert {(row.label, row.split) for row in found} == {(None, None)}
    for row, image in zip(found, images, strict=True):
        with Image.open(io.BytesIO(row.content)) as opened:
            assert (opened.format, opened.mode) == ("PNG", mode)
        np.testing.assert_array_equal(
            pixels_in(row.content), image.squeeze(axis=2) if shape[2:] == (1,) else image
        )


@given(
    images=st.sampled_from([(), (1,), (3,), (4,)]).flatmap(
        lambda channels: arrays.arrays(
            np.uint8,
            st.tuples(st.integers(0, 3), st.integers(1, 7), st.integers(1, 7)).map(
                lambda shape: shape + channels
            ),
        )
    )
)
def test_every_pixel_of_an_npz_file_survives(tmp_path_factory, images):
    found = npz(tmp_path_factory.mktemp("npz"), images=images)
    expected = images[..., 0] if images.shape[3:] == (1,) else images
    assert len(found) == len(images)
    for row, image in zip(found, expected, strict=True):
        np.testing.assert_array_equal(pixels_in(row.content), image)


def test_the_bytes_follow_from_the_pixels_alone(tmp_path):
    """A new version of a library must not give rows other names, or they change their splits."""
    images = (np.arange(2 * 6 * 5 * 3) % 256).astype(np.uint8).reshape(2, 6, 5, 3)
    plain = npz(tmp_path / "plain", images=images)
    np.savez_compressed(tmp_path / "plain" / "all.npz", images=np.asfortranarray(images))
    packed = list(Images().read(tmp_path / "plain"))
    assert [row.content for row in packed] == [row.content for row in plain]
    name = "e9822f94c008d3ba64be84cec239ed17"
    assert sha256(plain[0].content).hexdigest().startswith(name)


def test_a_grey_image_is_grey_whether_it_has_an_axis_for_channels_or_not(tmp_path):
    images = NOISE[None, :8, :8]
    flat, deep = (
        npz(tmp_path / "flat", images=images),
        npz(tmp_path / "deep", images=images[..., None]),
    )
    assert flat[0].content == deep[0].content


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array(["cat", "", "dog"]), ["cat", None, "dog"]),
        (np.array([b"cat", b"", b"dog"]), ["cat", None, "dog"]),
        (np.array([7, -1, 0]), ["7", None, "0"]),
        (np.array([7, 255, 0], np.uint8), ["7", "255", "0"]),
        (np.array([7.0, np.nan, 0.0]), ["7", None, "0"]),
        (np.array([7.0, -1.0, 0.0], np.float32), ["7", None, "0"]),
        (np.array(["-1", "nan", "é"]), ["-1", "nan", "é"]),
    ],
    ids=["texts", "bytes", "whole", "small", "nan", "minus one", "texts that look like none"],
)
def test_labels_may_be_texts_or_numbers_and_missing(tmp_path, labels, expected):
    found = npz(tmp_path, images=NOISE[:3, :64].reshape(3, 8, 8), labels=labels)
    assert [row.label for row in found] == expected


def test_splits_of_an_npz_file_are_read(tmp_path):
    images = NOISE[:3, :64].reshape(3, 8, 8)
    found = npz(tmp_path, images=images, split=np.array(["test", "", "train"]))
    assert [row.split for row in found] == ["test", None, "train"]
    with pytest.raises(DataError, match=r"data/all\.npz#1: 'split' is 'dev'"):
        npz(tmp_path, images=images, split=np.array(["test", "dev", ""]))


def test_other_arrays_of_an_npz_file_are_passed_over(tmp_path):
    ids = np.array([{"no": "number"}], object)
    found = npz(tmp_path, images=NOISE[None, :8, :8], ids=ids, label=np.array(["a", "b"]))
    assert [row.label for row in found] == [None]


def refusal(folder, **arrays):
    with pytest.raises(DataError) as caught:
        npz(folder, **arrays)
    (line,) = str(caught.value).splitlines()
    return line


def test_an_npz_file_without_images_says_what_it_holds(tmp_path):
    line = refusal(tmp_path, x_train=NOISE, y_train=NOISE[0])
    assert line.startswith(
        "data/all.npz holds the arrays ['x_train', 'y_train'], expected 'images'"
    )
    (tmp_path / "all.npz").unlink()
    with zipfile.ZipFile(tmp_path / "all.npz", "w") as archive:
        archive.writestr("images", "no array")
    with pytest.raises(DataError, match=r"holds the arrays \[\], expected 'images'"):
        read(tmp_path)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8), np.float32),
        np.zeros((2, 8, 8), np.int64),
        np.zeros((2, 8, 8), bool),
        np.zeros((8, 8), np.uint8),
        np.zeros((2, 8, 8, 2), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((2, 0, 8), np.uint8),
        np.zeros((2, 8, 8, 3, 1), np.uint8),
        np.uint8(3),
        np.array(["a", "b"]),
    ],
    ids=lambda images: f"{images.dtype} {images.shape}",
)
def test_images_of_another_type_or_shape_are_refused(tmp_path, images):
    line = refusal(tmp_path, images=images)
    assert f"data/all.npz: 'images' is {images.dtype} of shape {images.shape}" in line
    assert "expected uint8 of shape (N, H, W) or (N, H, W, C)" in line


@pytest.mark.parametrize("array", ["labels", "split"])
@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), ()])
def test_one_label_and_split_for_each_image_are_needed(tmp_path, array, shape):
    values = np.full(shape, "train")
    line = refusal(tmp_path, images=NOISE[:3, :64].reshape(3, 8, 8), **{array: values})
    assert f"data/all.npz: '{array}' has shape {shape}, expected (3,)" in line


@pytest.mark.parametrize(
    "value", [2.5, np.inf, True, 1j, np.datetime64("2026-01-01"), b"\xff"], ids=repr
)
def test_a_label_that_is_neither_text_nor_whole_is_refused(tmp_path, value):
    line = refusal(tmp_path, images=NOISE[None, :8, :8], labels=np.array([value]))
    assert line.startswith("data/all.npz: 'labels' holds ")
    assert line.endswith("expected texts or whole numbers")


@pytest.mark.parametrize("array", ["images", "labels", "split"])
def test_nothing_is_unpickled(tmp_path, array):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    plain = {"images": NOISE[None, :8, :8], "labels": np.array(["a"])}
    line = refusal(tmp_path, **plain | {array: np.array([Trap()], object)})
    assert line.startswith(f"data/all.npz: '{array}' is no plain array (")
    assert "never Python objects" in line


def test_a_pickle_under_the_name_of_an_npz_file_is_not_opened(tmp_path):
    np.save(tmp_path / "one.npy", np.array([{"an": "object"}], object), allow_pickle=True)
    (tmp_path / "one.npy").rename(tmp_path / "all.npz")
    with pytest.raises(DataError, match=r"data/all\.npz is not a whole NPZ archive"):
        read(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file_that_is_cut_or_damaged_is_named(tmp_path, save):
    path = tmp_path / "all.npz"
    save(path, images=NOISE[None, :, :] % 40, labels=np.array(["a"]))
    whole = path.read_bytes()
    for length in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"data/all\.npz is not a whole NPZ archive") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)
    for at in range(70, len(whole) // 2, 97):
        damage = bytes(255 - value for value in whole[at : at + 4])
        path.write_bytes(whole[:at] + damage + whole[at + 4 :])
        with pytest.raises(DataError, match=r"data/all\.npz"):
            read(tmp_path)


def test_hidden_npz_files_are_passed_over(tmp_path):
    (tmp_path / ".all.npz").write_bytes(b"nothing")
    assert read(tmp_path) == []


@given(
    pixels=st.sampled_from([1, 3]).flatmap(
        lambda channels: arrays.arrays(
            np.uint8,
            st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.just(channels)),
        )
    )
)
def test_training_and_serving_see_the_same_bits(pixels):
    trained = Images().to_network(torch.from_numpy(pixels))
    served = runtime.network_input(pixels)
    assert trained.dtype == torch.float32
    assert served.dtype == np.float32
    assert trained.shape == served.shape
    assert trained.contiguous().numpy().tobytes() == served.tobytes()


def test_every_value_is_its_share_of_255():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    expected = (np.arange(256) / np.float32(255)).astype(np.float32).reshape(1, 1, 16, 16)
    assert np.array_equal(runtime.network_input(values), expected)
    assert np.array_equal(Images().to_network(torch.from_numpy(values)).numpy(), expected)


def test_colours_move_to_the_front():
    pixels = np.zeros((1, 4, 4, 3), np.uint8)
    pixels[0, 1, 2] = [255, 51, 0]
    found = Images().to_network(torch.from_numpy(pixels))
    assert found[0, :, 1, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_its_runtime_is_the_file_that_serves():
    assert Images().runtime.samefile(runtime.__file__)
