import base64
import io
import json
from contextlib import suppress

import numpy as np
import onnx
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy.special import softmax

from tasks.runtimes import images
from tasks.runtimes.images import ImageClassifier, decode, from_array, to_pixels

CLASSES = ["ant", "bee", "cow", "dog"]
SIDE = 8


def weights(channels):
    random = np.random.default_rng(channels)
    size = channels * SIDE * SIDE
    return random.normal(0, 0.3, (size, 4)).astype(np.float32), random.normal(0, 1, 4).astype(
        np.float32
    )


def linear_model(folder, channels):
    """An ONNX file written by hand, so that its answers can be computed by numpy."""
    matrix, bias = weights(channels)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["inputs"], ["flat"]),
            helper.make_node("Gemm", ["flat", "matrix", "bias"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["n", channels, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    schema = {"classes": CLASSES, "side": SIDE, "channels": channels}
    (folder / "schema.json").write_text(json.dumps(schema))
    return ImageClassifier(folder)


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    return linear_model(tmp_path_factory.mktemp("grey"), 1)


@pytest.fixture(scope="module")
def rgb(tmp_path_factory):
    return linear_model(tmp_path_factory.mktemp("rgb"), 3)


def expected(pixels):
    """Probabilities (N, 4) of pixels (N, 8, 8, C), by numpy in double precision."""
    channels = pixels.shape[3]
    matrix, bias = weights(channels)
    flat = (pixels.astype(float) / 255).transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    return softmax(flat @ matrix + bias, axis=1)


def same(found, pixels):
    probabilities = expected(pixels)
    assert list(found.columns) == ["label", "probability", "probabilities"]
    np.testing.assert_allclose(np.array(found["probabilities"].tolist()), probabilities, rtol=1e-4)
    assert found["label"].tolist() == [CLASSES[at] for at in probabilities.argmax(1)]
    np.testing.assert_allclose(found["probability"], probabilities.max(1), rtol=1e-4)
    np.testing.assert_allclose([sum(row) for row in found["probabilities"]], 1, atol=1e-5)


GREY = np.random.default_rng(5).integers(0, 256, (6, SIDE, SIDE, 1), dtype=np.uint8)
RGB = np.random.default_rng(6).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)


# Forms of input


def test_encoded_bytes(grey, rgb, png):
    same(grey.predict([png(row[:, :, 0]) for row in GREY]), GREY)
    same(rgb.predict([png(row) for row in RGB]), RGB)


def test_base64_text(grey, png):
    text = [base64.b64encode(png(row[:, :, 0])).decode() for row in GREY]
    same(grey.predict(text), GREY)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_one_encoded_image(grey, png, kind):
    same(grey.predict(kind(png(GREY[0, :, :, 0]))), GREY[:1])


def test_one_base64_text(grey, png):
    same(grey.predict(base64.b64encode(png(GREY[0, :, :, 0])).decode()), GREY[:1])


def test_one_array(grey, rgb):
    same(grey.predict(GREY[0, :, :, 0]), GREY[:1])
    same(rgb.predict(RGB[0]), RGB[:1])


def test_one_array_with_one_channel(grey):
    same(grey.predict(GREY[0]), GREY[:1])


def test_arrays(grey, rgb):
    same(grey.predict(GREY[:, :, :, 0]), GREY)
    same(grey.predict(GREY), GREY)
    same(rgb.predict(RGB), RGB)


def test_three_arrays_are_three(grey, rgb):
    same(grey.predict(GREY[:3, :, :, 0]), GREY[:3])
    same(rgb.predict(RGB[:3]), RGB[:3])


def test_lists_of_arrays_of_any_number_type(grey):
    kinds = [np.uint8, np.int64, np.float32, np.float64, int, float]
    mixed = [row[:, :, 0].astype(kind) for row, kind in zip(GREY, kinds, strict=True)]
    same(grey.predict(mixed), GREY)
    same(grey.predict([row[:, :, 0].tolist() for row in GREY]), GREY)


def test_a_data_frame_is_read_from_its_first_column(grey, png):
    frame = pd.DataFrame({"image": [png(row[:, :, 0]) for row in GREY], "note": range(6)})
    same(grey.predict(frame), GREY)
    same(grey.predict(frame.iloc[::-1]), GREY[::-1])


def test_a_dict_and_a_column_of_objects(grey, png):
    content = [png(row[:, :, 0]) for row in GREY]
    same(grey.predict({"image": content}), GREY)
    same(grey.predict(np.array(content, dtype=object)), GREY)


def test_grey_inputs_of_a_colour_model_and_the_other_way_round(grey, rgb, png):
    same(rgb.predict([png(row[:, :, 0]) for row in GREY]), np.repeat(GREY, 3, axis=3))
    luma = np.stack([np.asarray(Image.fromarray(row).convert("L")) for row in RGB])
    same(grey.predict(RGB), luma[:, :, :, None])


def test_nothing_in_nothing_out(grey):
    found = grey.predict([])
    assert len(found) == 0
    assert list(found.columns) == ["label", "probability", "probabilities"]


def test_more_rows_than_a_batch_keep_their_order(grey):
    many = np.random.default_rng(0).integers(0, 256, (images.BATCH_SIZE * 2 + 3, 8, 8, 1), np.uint8)
    same(grey.predict(many), many)


def test_large_logits_do_not_overflow(tmp_path, monkeypatch, grey):
    monkeypatch.setattr(grey, "logits", lambda pixels: np.array([[1e4, 0, 0, -1e4]], np.float32))
    assert grey.probabilities(GREY[:1]).tolist() == [[1, 0, 0, 0]]


# Refused inputs


@pytest.mark.parametrize(
    "bad",
    [
        b"not an image",
        b"",
        "not base64!",
        base64.b64encode(b"no image").decode(),
        None,
        3.0,
        np.zeros((8, 8, 2)),
        np.zeros((1, 8, 8, 3)),
        np.full((8, 8), 300),
        np.full((8, 8), -1),
        np.full((8, 8), np.nan),
        np.zeros((0, 8)),
    ],
    ids=lambda bad: (
        repr(bad)[:20] if not isinstance(bad, np.ndarray) else f"{bad.shape}{bad.max(initial=-9)}"
    ),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_bad_input_is_named_by_its_position(grey, png, bad):
    with pytest.raises(ValueError, match=r"^input 2: "):
        grey.predict([png(GREY[0, :, :, 0]), GREY[1, :, :, 0], bad, GREY[3, :, :, 0]])


def test_a_cut_image_is_refused(grey, png):
    content = png(GREY[0, :, :, 0])
    for length in (10, 40, len(content) - 30):
        with pytest.raises(ValueError, match="input 0: not a readable image"):
            grey.predict([content[:length]])


@given(content=st.binary(max_size=200))
def test_any_bytes_are_an_image_or_a_value_error(content):
    with suppress(ValueError):
        assert decode(content, 8, 1).shape == (8, 8, 1)


# The stated rule


def test_a_wide_image_is_centred_on_black():
    found = to_pixels(Image.new("L", (16, 8), 200), 8, 1)[:, :, 0]
    expected_rows = [0, 0, 200, 200, 200, 200, 0, 0]
    np.testing.assert_array_equal(found, np.repeat(expected_rows, 8).reshape(8, 8))


def test_scaling_is_lanczos():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8))
    reference = np.asarray(image.resize((8, 8), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(to_pixels(image, 8, 1)[:, :, 0], reference)


def test_a_very_thin_image_does_not_vanish():
    assert to_pixels(Image.new("L", (100, 2), 255), 8, 1).max() == 255


def test_the_orientation_tag_is_applied():
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, 7] = 255
    stream = io.BytesIO()
    tag = Image.Exif()
    tag[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(pixels).save(stream, "PNG", exif=tag)
    np.testing.assert_array_equal(decode(stream.getvalue(), 8, 1)[:, :, 0], np.rot90(pixels, -1))


def test_transparency_is_laid_over_white_in_grey_too():
    clear = Image.new("LA", (8, 8), (0, 0))
    clear.paste((40, 255), (0, 0, 4, 8))
    found = to_pixels(clear, 8, 1)[:, :, 0]
    assert (found[:, :4] == 40).all()
    assert (found[:, 4:] == 255).all()


def test_a_palette_with_a_clear_colour_is_laid_over_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 8, 4))
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=0)
    found = decode(stream.getvalue(), 8, 3)
    assert (found[:4] == [200, 100, 50]).all()
    assert (found[4:] == 255).all()


def test_a_dark_sixteen_bit_image_stays_dark():
    dim = to_pixels(Image.fromarray(np.full((8, 8), 255, np.uint16)), 8, 1).max()
    brighter = to_pixels(Image.fromarray(np.full((8, 8), 514, np.uint16)), 8, 1).max()
    assert brighter == 2
    assert dim <= brighter


def test_sixteen_bits_in_the_other_byte_order_are_the_same_image():
    values = np.linspace(0, 65535, 64).reshape(8, 8).round()
    stream = io.BytesIO()
    Image.frombytes("I;16B", (8, 8), values.astype(">u2").tobytes()).save(stream, "TIFF")
    expected_values = np.round(values / 257)
    found = decode(stream.getvalue(), 8, 1)[:, :, 0]
    np.testing.assert_allclose(found, expected_values, atol=1)


@given(
    st.integers(1, 30), st.integers(1, 30), st.sampled_from(["L", "RGB", "RGBA", "1", "P", "CMYK"])
)
def test_any_size_and_mode_become_the_square(width, height, mode):
    for channels in (1, 3):
        found = to_pixels(Image.new(mode, (width, height)), 12, channels)
        assert found.shape == (12, 12, channels)
        assert found.dtype == np.uint8


def test_fractions_of_a_grey_value_are_rounded():
    assert from_array(np.full((8, 8), 99.6), 8, 1).tolist() == np.full((8, 8, 1), 100).tolist()
