"""Images: folders by class, zip archives of such folders, or Parquet with an `image` column."""

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from tasks.errors import DataError
from tasks.modalities import Modality, RawRow, RowClassifier
from tasks.runtimes import images as runtime

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
UNLABELLED = "unlabelled"
SPLIT_FOLDERS = {"train": "train", "test": "test"}
LARGEST_AUTOMATIC_SIDE = 32
SIDE_MULTIPLE = 4


class Images(Modality):
    """Square grey or RGB images.

    Attributes:
        side: Side in pixels of the square that every image is fitted into. `auto` takes the most
            common longer side, as a multiple of 4, between 8 and 32.
        channels: 1 (grey), 3 (RGB), or `auto`: grey where every image is grey.
    """

    name: Literal["images"] = "images"
    side: Annotated[int, Field(ge=4, le=512)] | Literal["auto"] = "auto"
    channels: Literal[1, 3, "auto"] = "auto"

    def read(self, folder: Path) -> Iterator[RawRow]:
        """See `Modality.read`; hidden files and files of other kinds are passed over."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder)
            if any(part.startswith(".") for part in name.parts):
                continue
            if path.suffix == ".parquet":
                yield from _parquet_rows(path, name.as_posix())
            elif path.suffix == ".zip":
                yield from _zip_rows(path, name.as_posix())
            elif path.suffix.lower() in SUFFIXES:
                split, label = _place(PurePosixPath(name.as_posix()))
                yield RawRow(name.as_posix(), path.read_bytes(), label, split)

    def survey(self, contents: Iterator[bytes]) -> dict[str, Any]:
        """Reads the headers of all images to settle `side` and `channels`."""
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


def _place(name: PurePosixPath) -> tuple[str | None, str | None]:
    """Split and label that a path states: `[train|test/]<class>/…/file`.

    Raises:
        DataError: The file lies in no class folder.
    """
    folders = list(name.parts[:-1])
    split = SPLIT_FOLDERS.get(folders[0]) if folders else None
    if split:
        folders = folders[1:]
    if not folders:
        folder = PurePosixPath("data") / name.parent
        raise DataError(
            f"image '{name}' lies in no class folder; expected {folder / '<class>' / name.name}, "
            f"or {folder / UNLABELLED / name.name} for an image without a label"
        )
    return split, None if folders[0] == UNLABELLED else folders[0]


def _zip_rows(path: Path, name: str) -> Iterator[RawRow]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist()):
                inner = PurePosixPath(member)
                hidden = any(part.startswith((".", "__MACOSX")) for part in inner.parts)
                if inner.suffix.lower() in SUFFIXES and not hidden:
                    split, label = _place(inner)
                    yield RawRow(f"{name}!{member}", archive.read(member), label, split)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"data/{name} is not a whole zip archive ({error}); copy it again"
        ) from None


def _parquet_rows(path: Path, name: str) -> Iterator[RawRow]:
    try:
        table = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"data/{name} is not a whole Parquet file ({error}); copy it again"
        ) from None
    columns = set(table.schema_arrow.names)
    if "image" not in columns:
        raise DataError(
            f"data/{name} has the columns {sorted(columns)}, expected 'image' (encoded bytes), and "
            "optionally 'label' and 'split'"
        )
    batches = table.iter_batches(columns=sorted(columns & {"image", "label", "split"}))
    at = 0
    while (found := _next_batch(batches, name)) is not None:
        for row in found.to_pylist():
            yield _parquet_row(row, f"{name}#{at}")
            at += 1


def _next_batch(batches: Iterator[pyarrow.RecordBatch], name: str) -> pyarrow.RecordBatch | None:
    try:
        return next(batches, None)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"data/{name} is not a whole Parquet file ({error}); copy it again"
        ) from None


def _parquet_row(row: dict[str, Any], source: str) -> RawRow:
    image = row["image"]
    if isinstance(image, dict):  # the layout that Hugging Face datasets write
        image = image.get("bytes")
    if not isinstance(image, bytes):
        raise DataError(
            f"data/{source}: 'image' holds {type(image).__name__}, expected encoded bytes"
        )
    label, split = row.get("label"), row.get("split") or None
    if split not in {None, *SPLIT_FOLDERS.values()}:
        raise DataError(f"data/{source}: 'split' is '{split}', expected 'train', 'test' or empty")
    return RawRow(source, image, None if label is None else str(label), split)
