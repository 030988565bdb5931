"""Tables: CSV or Parquet files with one row per line, numbers and words."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks import records
from tasks.errors import DataError
from tasks.modalities import Modality, RawRow, RowClassifier
from tasks.runtimes import tables as runtime
from tasks.sections import hint

if TYPE_CHECKING:
    from torch import Tensor

SPLIT_COLUMN = "split"
SAVED_INDEX = "__index_level_"


class Tables(Modality):
    """Rows of numeric and categorical columns, in one file or several with the same columns.

    A column is numeric where every cell of the training rows that is not empty reads as a finite
    number, else categorical. `runtimes.tables.encode` states what becomes of a cell.

    Attributes:
        label_column: Holds the class; empty where nobody has labelled the row.
        ignore: Columns that say nothing of the class, such as identifiers.
        rare_below: Categories that fewer training rows hold are taken together as one.
        categories: Most categories of a column that are kept apart, the most frequent first; the
            rest are taken together.
    """

    keeps_contents: ClassVar[bool] = True

    name: Literal["tables"] = "tables"
    label_column: Annotated[str, Field(min_length=1)] = "label"
    ignore: tuple[str, ...] = ()
    rare_below: Annotated[int, Field(ge=1)] = 2
    categories: Annotated[int, Field(ge=1)] = 64

    def read(self, folder: Path) -> Iterator[RawRow]:
        """See `Modality.read`; hidden files and files of other kinds are passed over.

        A row's content is the canonical JSON of its feature cells, as the file gave them.
        """
        first: tuple[str, list[str]] | None = None
        seen: set[str] = set()
        for name, path in records.files(folder):
            if path.suffix not in records.SUFFIXES:
                continue
            features: list[str] | None = None
            for source, row in records.read(path, name):
                if features is None:
                    features = self._features(row, name)
                    first = first or (name, features)
                    _refuse_differing((name, features), first)
                    seen |= row.keys()
                yield self._row(row, features, source)
        if seen:
            self._refuse_absent(seen)

    def survey(self, contents: Iterator[bytes]) -> dict[str, Any]:
        """Settles every column's kind, scale and categories."""
        cells: dict[str, Counter[Any]] = {}
        for content in contents:
            for name, value in json.loads(content).items():
                cells.setdefault(name, Counter())[value] += 1
        columns = [self._column(name, found) for name, found in cells.items()]
        widths = [runtime.width(column) for column in columns]
        return {
            "columns": columns,
            "shape": [sum(widths)],
            "dtype": "float32",
            "groups": [at for at, width in enumerate(widths) for _ in range(width)],
        }

    def encode(self, content: bytes, schema: dict[str, Any]) -> NDArray[np.float32]:
        """Features (features,); the runtime's own rule."""
        return runtime.encode(json.loads(content), schema["columns"])

    def to_network(self, batch: "Tensor") -> "Tensor":
        """(N, features), as stored."""
        return batch.float()

    def classifier(self, folder: Path, threads: int = 1) -> RowClassifier:
        """`runtimes.tables.TableClassifier`."""
        return runtime.TableClassifier(folder, threads)

    @property
    def runtime(self) -> Path:
        """`runtimes/tables.py`."""
        return Path(runtime.__file__)

    def _features(self, row: dict[str, Any], name: str) -> list[str]:
        features = sorted(row.keys() - {self.label_column, SPLIT_COLUMN, *self.ignore})
        nameless = [column for column in features if not column or column.startswith(SAVED_INDEX)]
        if nameless:
            # Rows are often sorted by class: their numbers would give the labels away.
            raise DataError(
                f"data/{name} has the column '{nameless[0]}', as pandas saves row numbers; save "
                "the file without its index, or name the column in prepare.modality.ignore"
            )
        if not features:
            raise DataError(
                f"data/{name} has no columns but {sorted(row)}; add what the class follows from"
            )
        return features

    def _row(self, row: dict[str, Any], features: list[str], source: str) -> RawRow:
        cells = {name: _plain(row[name], name, source) for name in features}  # in their order
        content = json.dumps(cells, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        known = {"label": row.get(self.label_column), "split": row.get(SPLIT_COLUMN)}
        return RawRow(source, content.encode(), *records.label_and_split(known, source))

    def _refuse_absent(self, seen: set[str]) -> None:
        wanted = {"label_column": (self.label_column,), "ignore": self.ignore}
        for parameter, names in wanted.items():
            for name in names:
                if name not in seen:
                    raise DataError(
                        f"prepare.modality.{parameter} names '{name}', a column that no file in "
                        f"data/ has{hint(name, list(seen))}"
                    )

    def _column(self, name: str, cells: Counter[Any]) -> dict[str, Any]:
        present = {value: count for value, count in cells.items() if not runtime.is_missing(value)}
        gaps = len(present) < len(cells)
        numbers = [runtime.number(value) for value in present]
        if None in numbers:
            return {"name": name, "kind": "categorical", **self._categories(present, missing=gaps)}
        values = np.asarray(numbers, np.float64)
        counts = np.asarray(list(present.values()), np.float64)
        stated = ~np.isnan(values)
        mean, deviation = _scale(values[stated], counts[stated])
        return {
            "name": name,
            "kind": "numeric",
            "mean": mean,
            "deviation": deviation,
            "flag": gaps or not bool(stated.all()),
        }

    def _categories(self, present: dict[Any, int], *, missing: bool) -> dict[str, Any]:
        """Places of their own for `other` and `missing` only where a training row can teach them.

        Where none can, the cell leaves all places 0, instead of weights that never learnt.
        """
        counts: Counter[str] = Counter()
        for value, count in present.items():
            counts[runtime.category(value)] += count
        frequent = [name for name, count in counts.items() if count >= self.rare_below]
        kept = sorted(frequent, key=lambda name: (-counts[name], name))[: self.categories]
        return {"categories": sorted(kept), "other": len(kept) < len(counts), "missing": missing}


def _refuse_differing(found: tuple[str, list[str]], first: tuple[str, list[str]]) -> None:
    differing = sorted({*found[1]} ^ {*first[1]})
    if differing:
        named = ", ".join(f"'{column}'" for column in differing)
        raise DataError(
            f"data/{found[0]} and data/{first[0]} differ in the columns {named}; give all files "
            "the same ones, or name these in prepare.modality.ignore"
        )


def _plain(value: Any, column: str, source: str) -> str | float | None:  # noqa: ANN401
    """A cell as JSON has it.

    Raises:
        DataError: It is infinite, or neither a number nor text.
    """
    if isinstance(value, Decimal):
        value = float(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float) and not math.isinf(value):
        return None if math.isnan(value) else value
    found = value if isinstance(value, float) else type(value).__name__
    raise DataError(
        f"data/{source}: '{column}' holds {found}, expected a finite number, text or nothing; "
        "change it, or name the column in prepare.modality.ignore"
    )


def _scale(values: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation of values that occur `counts` times; 1 where all are equal."""
    if not len(values):
        return 0.0, 1.0
    if values.min() == values.max():
        return float(values[0]), 1.0
    # In units of the largest value, as its square need not be a number any more.
    unit = float(np.abs(values).max())
    shares, scaled = counts / counts.sum(), values / unit
    mean = float(shares @ scaled)
    deviation = float(np.sqrt(shares @ (scaled - mean) ** 2)) * unit
    return mean * unit, deviation or 1.0
