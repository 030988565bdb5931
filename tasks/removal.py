"""Taking rows out of a table file, with every other row as it was."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet


def keep_others(source: Path, positions: set[int], target: Path) -> int:
    """Writes a CSV or Parquet file without some rows.

    Of a CSV file the other lines keep their bytes, whatever their quoting and line ends; of a
    Parquet file the columns keep their types and the file its metadata.

    Args:
        source: The file; its suffix says which kind.
        positions: Rows to leave out, counted from 0 as `tasks.records.read` does.
        target: File to write.

    Returns:
        How many rows are left.
    """
    if source.suffix.lower() == ".csv":
        return _csv(source, positions, target)
    return _parquet(source, positions, target)


def _csv(source: Path, positions: set[int], target: Path) -> int:
    left = 0
    with source.open(encoding="utf-8", newline="") as stream, target.open("wb") as output:
        for at, (fields, text) in enumerate(_records(stream), start=-1):
            if at not in positions:
                output.write(text.encode())
                left += at >= 0 and bool(fields)
    return left


def _records(stream: Iterator[str]) -> Iterator[tuple[list[str], str]]:
    """Each record, the header first, with its own text; empty lines go with the record before."""
    taken: list[str] = []

    def noted() -> Iterator[str]:
        for line in stream:
            taken.append(line)
            yield line

    held: tuple[list[str], str] | None = None
    for fields in csv.reader(noted(), strict=True):
        text = "".join(taken)
        taken.clear()
        if fields or held is None:
            if held:
                yield held
            held = (fields, text)
        else:
            held = (held[0], held[1] + text)
    if held:
        yield held


def _parquet(source: Path, positions: set[int], target: Path) -> int:
    table = pyarrow.parquet.read_table(source)
    kept = table.filter(pyarrow.array([at not in positions for at in range(len(table))]))
    pyarrow.parquet.write_table(kept, target, compression="zstd")
    return len(kept)
