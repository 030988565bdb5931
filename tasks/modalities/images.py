"""Images: folders by class, zip archives of such folders, Parquet or NPZ files."""

import io
import math
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from tasks import records
from tasks.errors import DataError
from tasks.modalities import Modality, RawRow, RowClassifier
from tasks.runtimes import images as runtime

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
NPZ_ARRAYS = ("images", "labels", "split")
NO_LABEL = -1
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_COLOURS = {1: 0, 3: 2, 4: 6}  # by channels: grey, RGB, RGBA
LARGEST_STORED_BLOCK = 65535
LARGEST_AUTOMATIC_SIDE = 32
SIDE_MULTIPLE = 4


class Images(Modality):
    """Square grey or RGB images.

    Attributes:
        side: Side in pixels of the square that every image is fitted into. `auto` takes the most
            common longer side, as a multiple of 4, between 8 and 32.
        channels: 1 (grey), 3 (RGB), or `auto`: grey where every image is grey.
    """

    requirements: ClassVar[tuple[str, ...]] = ("pillow",)

    name: Literal["images"] = "images"
    side: Annotated[int, Field(ge=4, le=512)] | Literal["auto"] = "auto"
    channels: Literal[1, 3, "auto"] = "auto"

    def read(self, folder: Path) -> Iterator[RawRow]:
        """See `Modality.read`; hidden files and files of other kinds are passed over."""
        for name, path in records.files(folder):
            if path.suffix == ".parquet":
                yield from _parquet_rows(path, name)
            elif path.suffix == ".zip":
                yield from _zip_rows(path, name)
            elif path.suffix == ".npz":
                yield from _npz_rows(path, name)
            elif path.suffix.lower() in SUFFIXES:
                split, label = records.place(PurePosixPath(name), "image")
                yield RawRow(name, path.read_bytes(), label, split)

    def survey(self, contents: Iterator[bytes]) -> dict[str, Any]:
        """Reads the images' headers to settle `side` and `channels`."""
        sides: Counter[int] = Counter()
        grey = True
        for content in contents:
            try:
                with Image.open(io.BytesIO(content)) as image:
                    sides[max(image.size)] += 1
                    grey = grey and runtime.is_grey(image)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                continue  # encode() meets the same file and names it
        side = self.side if self.side != "auto" else _automatic_side(sides)
        channels = self.channels if self.channels != "auto" else (1 if grey else 3)
        return {"side": side, "channels": channels, "shape": [side, side, channels]}

    def encode(self, content: bytes, schema: dict[str, Any]) -> NDArray[np.uint8]:
        """Pixels (side, side, channels); the runtime's own rule."""
        return runtime.decode(content, schema["side"], schema["channels"])

    def to_network(self, batch: "Tensor") -> "Tensor":
        """(N, H, W, C) of 0 to 255 → (N, C, H, W) of 0 to 1, laid out channels-last."""
        return batch.permute(0, 3, 1, 2).float() / 255

    def classifier(self, folder: Path, threads: int = 1) -> RowClassifier:
        """`runtimes.images.ImageClassifier`."""
        return runtime.ImageClassifier(folder, threads)

    @property
    def runtime(self) -> Path:
        """`runtimes/images.py`."""
        return Path(runtime.__file__)


def _automatic_side(sides: Counter[int]) -> int:
    common = max(sides, key=lambda side: (sides[side], side), default=LARGEST_AUTOMATIC_SIDE)
    rounded = round(common / SIDE_MULTIPLE) * SIDE_MULTIPLE
    return min(max(rounded, 2 * SIDE_MULTIPLE), LARGEST_AUTOMATIC_SIDE)


def _zip_rows(path: Path, name: str) -> Iterator[RawRow]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist()):
                inner = PurePosixPath(member)
                hidden = any(part.startswith((".", "__MACOSX")) for part in inner.parts)
                if inner.suffix.lower() in SUFFIXES and not hidden:
                    split, label = records.place(inner, "image")
                    yield RawRow(f"{name}!{member}", archive.read(member), label, split)
    except DAMAGED_ARCHIVE as error:
        raise DataError(
            f"data/{name} is not a whole zip archive ({error}); copy it again"
        ) from None


def _parquet_rows(path: Path, name: str) -> Iterator[RawRow]:
    for source, row in records.read(path, name):
        if "image" not in row:
            raise DataError(
                f"data/{name} has the columns {sorted(row)}, expected 'image' (encoded bytes), and "
                "optionally 'label' and 'split'"
            )
        yield _parquet_row(row, source)


def _parquet_row(row: dict[str, Any], source: str) -> RawRow:
    image = row["image"]
    if isinstance(image, dict):  # the layout that Hugging Face datasets write
        image = image.get("bytes")
    if not isinstance(image, bytes):
        raise DataError(
            f"data/{source}: 'image' holds {type(image).__name__}, expected encoded bytes"
        )
    label, split = records.label_and_split(row, source)
    return RawRow(source, image, label, split)


def _npz_rows(path: Path, name: str) -> Iterator[RawRow]:
    """Rows of `images` (N, H, W) or (N, H, W, C) uint8, with `labels` (N,) and `split` (N,)."""
    arrays = _npz_arrays(path, name)
    images = _pictures(arrays["images"], name)
    labels, splits = (_texts(arrays, array, len(images), name) for array in ("labels", "split"))
    for at, image in enumerate(images):
        source = f"{name}#{at}"
        label, split = records.label_and_split({"label": labels[at], "split": splits[at]}, source)
        yield RawRow(source, _png(image), label, split)


def _npz_arrays(path: Path, name: str) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            files = [file for file in archive.namelist() if file.endswith(".npy")]
            held = sorted(file.removesuffix(".npy") for file in files)
            if "images" not in held:
                raise DataError(
                    f"data/{name} holds the arrays {held}, expected 'images', and "
                    "optionally 'labels' and 'split'"
                )
            # Whole members, so that their checksums are compared before anything is made of them.
            found = {array: archive.read(f"{array}.npy") for array in NPZ_ARRAYS if array in held}
    except DAMAGED_ARCHIVE as error:
        raise DataError(
            f"data/{name} is not a whole NPZ archive ({error}); copy it again"
        ) from None
    return {array: _npy(content, array, name) for array, content in found.items()}


def _npy(content: bytes, array: str, name: str) -> NDArray[Any]:
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        raise DataError(
            f"data/{name}: '{array}' is no plain array ({error}); store numbers or texts, never "
            "Python objects"
        ) from None


def _pictures(images: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """(N, H, W, C)."""
    pictures = images[..., None] if images.ndim == 3 else images  # noqa: PLR2004 - (N, H, W)
    fits = pictures.ndim == 4 and pictures.shape[3] in PNG_COLOURS  # noqa: PLR2004
    if images.dtype != np.uint8 or not fits or 0 in images.shape[1:]:
        raise DataError(
            f"data/{name}: 'images' is {images.dtype} of shape {images.shape}, expected uint8 of "
            "shape (N, H, W) or (N, H, W, C) with C 1, 3 or 4"
        )
    return pictures


def _texts(arrays: dict[str, NDArray[Any]], array: str, count: int, name: str) -> list[str | None]:
    """Labels or splits as texts; None where there is none."""
    if array not in arrays:
        return [None] * count
    found = arrays[array]
    if found.shape != (count,):
        raise DataError(
            f"data/{name}: '{array}' has shape {found.shape}, expected ({count},): one for each "
            "image"
        )
    try:
        return [_text(value) for value in found.tolist()]
    except ValueError as error:
        raise DataError(
            f"data/{name}: '{array}' holds {error}, expected texts or whole numbers"
        ) from None


def _text(value: object) -> str | None:
    """None where it is empty, -1 or not a number.

    Raises:
        ValueError: It is neither a text nor a whole number.
    """
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    if value in {None, "", NO_LABEL}:
        return None
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole and not isinstance(value, str):
        raise ValueError(repr(value))
    return str(value)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (H, W, C) as a PNG file whose bytes follow from them alone.

    A row's name is the digest of its bytes, which must not change with the version of a library
    that compresses; so nothing is compressed here.
    """
    height, width, channels = pixels.shape
    unfiltered = np.zeros((height, 1), np.uint8)  # PNG's filter 0 for every line
    lines = np.hstack([unfiltered, pixels.reshape(height, -1)]).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, PNG_COLOURS[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", _stored(lines)), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _stored(data: bytes) -> bytes:
    """Data in zlib's format, uncompressed (RFC 1950, and RFC 1951 section 3.2.4)."""
    blocks = [b"\x78\x01"]
    for at in range(0, len(data), LARGEST_STORED_BLOCK):
        block = data[at : at + LARGEST_STORED_BLOCK]
        last = at + len(block) == len(data)
        blocks += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    return b"".join([*blocks, struct.pack(">I", zlib.adler32(data))])
