"""Which rows a data version holds, in a form that answers without parsing Parquet.

One file per row manifest, named by the manifest's sha256: the rows' digests in order, 32 bytes
each, then one byte per row for its split. A file that is torn counts as missing and is made again.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from tasks.errors import DataError

SPLITS = ("train", "validation", "test")
MAGIC = b"stillmark-rows/1"
DIGEST_BYTES = 32
HEADER_BYTES = len(MAGIC) + 8
Digests = NDArray[np.bytes_]


@dataclass(frozen=True)
class RowSet:
    """The rows of one manifest.

    Attributes:
        digests: sha256 of each row's content, ascending, (N,), memory-mapped.
        splits: Position of each row's split in `SPLITS`, (N,).
    """

    digests: Digests
    splits: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.digests)

    def starting_with(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Digest (hex) and split of every row whose digest starts so.

        Args:
            prefix: Of a sha256 in hex; the whole digest finds its row alone.
        """
        # As `S32` two digests compare byte by byte, as their hex does.
        bounds = packed([prefix.ljust(2 * DIGEST_BYTES, end) for end in "0f"])
        first = int(np.searchsorted(self.digests, bounds[:1])[0])
        beyond = int(np.searchsorted(self.digests, bounds[1:], side="right")[0])
        for at in range(first, beyond):
            yield self.digests[at].ljust(DIGEST_BYTES, b"\0").hex(), SPLITS[self.splits[at]]

    def splits_of(self, rows: Digests) -> set[str]:
        """The splits in which any of these rows (as `packed` makes them) lies."""
        at = np.minimum(np.searchsorted(self.digests, rows), max(len(self) - 1, 0))
        held = self.digests[at] == rows if len(self) else np.zeros(len(rows), bool)
        return {SPLITS[number] for number in np.unique(self.splits[at[held]])}


class RowSets:
    """The row sets of a project.

    Args:
        folder: Where their files lie; made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def open(self, manifest: str) -> RowSet | None:
        """The rows of a manifest by its sha256, or None where they are not kept here."""
        path = self._path(manifest)
        try:
            with path.open("rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):
            return None  # ValueError is what an empty file is
        kept = np.frombuffer(mapped, np.uint8)  # several times faster than numpy's own memmap
        count = int.from_bytes(kept[len(MAGIC) : HEADER_BYTES].tobytes(), "little")
        size = HEADER_BYTES + count * (DIGEST_BYTES + 1)
        if kept[: len(MAGIC)].tobytes() != MAGIC or len(kept) != size:
            return None
        digests, splits = np.split(kept[HEADER_BYTES:], [count * DIGEST_BYTES])
        return RowSet(digests.view(f"S{DIGEST_BYTES}"), splits)

    def keep(self, manifest: str, rows: Digests, splits: NDArray[np.uint8]) -> None:
        """Writes the rows of a manifest; a file is there as a whole or not at all.

        Args:
            manifest: sha256 of the manifest.
            rows: As `packed` makes them, in any order.
            splits: Position of each row's split in `SPLITS`.
        """
        order = np.argsort(rows, kind="stable")
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as stream:
            stream.write(MAGIC + len(rows).to_bytes(8, "little"))
            stream.write(rows[order].tobytes())
            stream.write(splits[order].tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        Path(stream.name).replace(self._path(manifest))

    def clear(self) -> None:
        """Throws all of them away."""
        for path in self.folder.iterdir():
            path.unlink()

    def _path(self, manifest: str) -> Path:
        return self.folder / f"{manifest}.rows"


def packed(digests: list[str]) -> Digests:
    """sha256 digests (hex) as fixed strings of 32 bytes.

    Raises:
        ValueError: One is not hex.
    """
    return np.frombuffer(bytes.fromhex("".join(digests)), f"S{DIGEST_BYTES}")


def read_manifest(path: Path) -> tuple[Digests, NDArray[np.uint8]]:
    """Rows and splits of a row manifest (Parquet), as `RowSets.keep` takes them.

    Raises:
        DataError: It is not a row manifest.
    """
    try:
        table = pyarrow.parquet.read_table(path, columns=["row", "split"])
        digests: list[str] = table["row"].to_pylist()
        if any(len(digest) != 2 * DIGEST_BYTES for digest in digests):
            raise DataError(f"{path} holds rows that are not named by a sha256; restore the file")
        numbers = {name: at for at, name in enumerate(SPLITS)}
        splits = [numbers[split] for split in table["split"].to_pylist()]
        return packed(digests), np.asarray(splits, np.uint8)
    except (pyarrow.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} is not a row manifest ({str(error).splitlines()[0]}); restore the file"
        ) from None


def rows_of_source(manifest: Path, name: str) -> list[str]:
    """Digests of the rows that came from a file, or from a folder, of the raw data.

    Args:
        manifest: The row manifest.
        name: Relative to `data/`. Files of many rows name theirs `<file>#<position>`.

    Raises:
        DataError: It is not a row manifest.
    """
    try:
        table = pyarrow.parquet.read_table(manifest, columns=["row", "source"])
        rows: list[tuple[str, str]] = list(
            zip(table["row"].to_pylist(), table["source"].to_pylist(), strict=True)
        )
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise DataError(
            f"{manifest} is not a row manifest ({str(error).splitlines()[0]}); restore the file"
        ) from None
    inside = (f"{name}#", f"{name}/") if name else ""
    return [row for row, source in rows if source == name or source.startswith(inside)]
