import io
import zipfile

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
