"""Where rows lie: CSV and Parquet files, row by row, and files in folders by class."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
import pyarrow.parquet

from tasks.errors import DataError

SUFFIXES = frozenset({".csv", ".parquet"})
SPLITS = frozenset({"train", "test"})
UNLABELLED = "unlabelled"


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder with its name there, in order; hidden ones are passed over."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), path


def read(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV or Parquet file.

    Args:
        path: The file.
        name: How messages call it, relative to `data/`.

    Yields:
        Where the row lies (`name#position`) and its values by column. CSV holds text only; an empty
        field is None.

    Raises:
        DataError: The file is cut, is not what its suffix says, or a line has too few or too many
            fields.
    """
    rows = _csv(path, name) if path.suffix.lower() == ".csv" else _parquet(path, name)
    for at, row in enumerate(rows):
        yield f"{name}#{at}", row


def _csv(path: Path, name: str) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _refuse_repeated(reader.fieldnames or (), name)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"data/{name}, line {reader.line_num}: not as many fields as the header's "
                        f"{len(reader.fieldnames or ())}; mend the line"
                    )
                yield {column: value or None for column, value in row.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"data/{name} is not a CSV file in UTF-8 ({error}); save it so") from None


def _refuse_repeated(columns: Sequence[str], name: str) -> None:
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise DataError(
            f"data/{name} names the columns {repeated} more than once; give each its own name"
        )


def _parquet(path: Path, name: str) -> Iterator[dict[str, Any]]:
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"data/{name} is not a whole Parquet file ({error}); copy it again"
        ) from None


def place(name: PurePosixPath, what: str) -> tuple[str | None, str | None]:
    """Split and label that a path states: `[train|test/]<class>/…/file`.

    Args:
        name: Relative to `data/`.
        what: What the file holds, for the message.

    Raises:
        DataError: The file lies in no class folder.
    """
    folders = list(name.parts[:-1])
    split = folders.pop(0) if folders and folders[0] in SPLITS else None
    if not folders:
        folder = PurePosixPath("data") / name.parent
        raise DataError(
            f"{what} '{name}' lies in no class folder; expected {folder / '<class>' / name.name}, "
            f"or {folder / UNLABELLED / name.name} where it has no label"
        )
    return split, None if folders[0] == UNLABELLED else folders[0]


def label_and_split(row: dict[str, Any], source: str) -> tuple[str | None, str | None]:
    """A row's `label` and `split` columns, None where they are missing or empty.

    Raises:
        DataError: `split` is neither `train` nor `test`.
    """
    label, split = row.get("label"), row.get("split") or None
    if split not in {None, *SPLITS}:
        raise DataError(f"data/{source}: 'split' is '{split}', expected 'train', 'test' or empty")
    missing = label is None or label == "" or label != label  # noqa: PLR0124 - true of NaN alone
    return None if missing else str(label), split
