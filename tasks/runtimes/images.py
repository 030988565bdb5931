"""Images at the edge: raw images in, labels and probabilities out, through ONNX Runtime.

Needs numpy, Pillow, pandas and onnxruntime only.
"""

import base64
import binascii
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

RGB_CHANNELS = 3
BATCH_SIZE = 256
BYTE, WORD = 255, 65535

SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16B", "I;16L"})
WIDE_MODES = SIXTEEN_BIT_MODES | {"I", "F"}
GREY_MODES = WIDE_MODES | {"1", "L", "LA"}


def is_grey(image: Image.Image) -> bool:
    """Whether an image file holds one channel (alpha aside)."""
    return image.mode in GREY_MODES


def to_pixels(image: Image.Image, side: int, channels: int) -> NDArray[np.uint8]:
    """Turns any image into the network's square of pixels.

    The stated rule: transparency is laid over white, the orientation tag is applied, colours become
    grey or RGB, and the image is scaled (Lanczos) to fit the square and centred on black.

    Args:
        image: A Pillow image of any size and mode.
        side: Side of the square in pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        Array (side, side, channels).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in WIDE_MODES:
        image = _eight_bit(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(_fitted(image, side), dtype=np.uint8).reshape(side, side, channels)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    if image.size == (side, side):
        return image
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    square = Image.new(image.mode, (side, side))
    inner = image.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(inner, ((side - width) // 2, (side - height) // 2))
    return square


def _eight_bit(image: Image.Image) -> Image.Image:
    """Sixteen-bit files span 0 to 65535; other wide modes do so where a value says it."""
    values = np.asarray(image, dtype=np.float64)
    wide = image.mode in SIXTEEN_BIT_MODES or (image.mode == "I" and values.max(initial=0) > BYTE)
    scaled = values.clip(0, WORD if wide else BYTE) * (BYTE / WORD if wide else 1.0)
    return Image.fromarray(scaled.round().astype(np.uint8))


def decode(content: bytes, side: int, channels: int) -> NDArray[np.uint8]:
    """Decodes an image file's bytes, all of them, into pixels (side, side, channels).

    Raises:
        ValueError: The bytes are not a whole image.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return to_pixels(image, side, channels)
    except UnidentifiedImageError:
        raise ValueError("not a readable image (no known format)") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({error})") from None


def from_array(array: NDArray[Any], side: int, channels: int) -> NDArray[np.uint8]:
    """Turns one image array (H, W) or (H, W, 1 or 3), values 0 to 255, into pixels.

    Raises:
        ValueError: The shape or the range is another.
    """
    if array.ndim == RGB_CHANNELS and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in {2, 3} or (array.ndim == RGB_CHANNELS and array.shape[2] != RGB_CHANNELS):
        raise ValueError(
            f"an image array has shape {array.shape}, expected (H, W) or (H, W, 1 or 3)"
        )
    if not array.size:
        raise ValueError(f"an image array has shape {array.shape}: it holds no pixel")
    if array.dtype != np.uint8:
        if not (array.min() >= 0 and array.max() <= BYTE):
            raise ValueError(f"pixels lie in {array.min()} to {array.max()}, expected 0 to 255")
        array = array.round().astype(np.uint8)
    return to_pixels(Image.fromarray(array), side, channels)


def network_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels (N, H, W, C) of 0 to 255 as the network takes them: (N, C, H, W) of 0 to 1."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


class ImageClassifier:
    """A stored model, ready to predict.

    Args:
        folder: Holds `model.onnx` and `schema.json` (classes, side, channels).
        threads: Threads that ONNX Runtime may use.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        import onnxruntime  # noqa: PLC0415 - preparing data needs this file but no runtime

        schema = json.loads((folder / "schema.json").read_text(encoding="utf-8"))
        self.classes: list[str] = schema["classes"]
        self.side: int = schema["side"]
        self.channels: int = schema["channels"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (N, classes) of pixels (N, H, W, C)."""
        name = self.session.get_inputs()[0].name
        batches = range(0, len(pixels), BATCH_SIZE)
        found = [
            np.asarray(
                self.session.run(None, {name: network_input(pixels[at : at + BATCH_SIZE])})[0]
            )
            for at in batches
        ]
        return np.concatenate(found) if found else np.zeros((0, len(self.classes)), np.float32)

    def probabilities(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Softmax of the logits, (N, classes), of pixels (N, H, W, C)."""
        logits = self.logits(rows)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:  # noqa: ANN401, ARG002
        """Labels of raw images; the signature is that of an MLflow pyfunc.

        Args:
            model_input: Encoded images (bytes, or base64 text) or arrays of 0 to 255: a list, a
                data frame whose first column holds them, an array (N, H, W) or (N, H, W, C), or one
                image.
            params: Unused; MLflow passes it.

        Returns:
            A data frame: `label`, `probability` of that label, `probabilities` in class order.

        Raises:
            ValueError: An input is not an image; its position is named.
        """
        import pandas  # noqa: PLC0415 - as above

        pixels = [self._pixels(item, at) for at, item in enumerate(_items(model_input))]
        shape = (-1, self.side, self.side, self.channels)
        probabilities = self.probabilities(np.asarray(pixels, np.uint8).reshape(shape))
        best = probabilities.argmax(axis=1) if len(probabilities) else np.zeros(0, int)
        return pandas.DataFrame(
            {
                "label": [self.classes[at] for at in best],
                "probability": [
                    float(row[at]) for row, at in zip(probabilities, best, strict=True)
                ],
                "probabilities": [[float(value) for value in row] for row in probabilities],
            }
        )

    def _pixels(self, item: Any, position: int) -> NDArray[np.uint8]:  # noqa: ANN401
        try:
            if isinstance(item, str):
                item = base64.b64decode(item, validate=True)
            if isinstance(item, bytes | bytearray | memoryview):
                return decode(bytes(item), self.side, self.channels)
            return from_array(np.asarray(item), self.side, self.channels)
        except (ValueError, TypeError, binascii.Error) as error:
            raise ValueError(f"input {position}: {error}") from None


def _items(model_input: Any) -> Iterable[Any]:  # noqa: ANN401
    """The single images in whatever a caller passed."""
    if isinstance(model_input, str | bytes | bytearray | memoryview):
        return [model_input]
    if hasattr(model_input, "columns"):
        return list(model_input.iloc[:, 0])
    if isinstance(model_input, dict):
        return _items(next(iter(model_input.values())))
    if isinstance(model_input, np.ndarray) and model_input.dtype != object:
        return [model_input] if _is_one(model_input) else list(model_input)
    return list(model_input)


def _is_one(array: NDArray[Any]) -> bool:
    """Whether an array is one image: (H, W), or (H, W, 1 or 3), rather than a batch (N, H, W)."""
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {1, RGB_CHANNELS})  # noqa: PLR2004


def _load_pyfunc(path: str) -> ImageClassifier:
    """MLflow's entry point: `path` is the stored folder."""
    return ImageClassifier(Path(path))
