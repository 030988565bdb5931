"""Prepared rows, as stages read them: labels that may not be seen cannot be reached by accident."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from tasks.errors import DataError
from tasks.modalities import MODALITIES, Modality

HIDDEN = -1


@dataclass(frozen=True)
class Part:
    """Some of the rows.

    Attributes:
        names: sha256 of each row's content, (N,).
        inputs: Encoded rows, (N, …) uint8; memory-mapped.
        labels: Class numbers, (N,), with -1 where the label is hidden or unknown.
    """

    names: NDArray[np.str_]
    inputs: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labelled(self) -> "Part":
        """Those rows whose label is shown."""
        return self._where(self.labels != HIDDEN)

    def _where(self, chosen: NDArray[np.bool_]) -> "Part":
        return Part(self.names[chosen], self.inputs[chosen], self.labels[chosen])


class Rows:
    """The rows that the data stage prepared.

    Args:
        folder: Holds `manifest.parquet`, `rows.npy` and `schema.json`.

    Raises:
        DataError: One of these files is missing.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("manifest.parquet", "rows.npy", "schema.json"):
            if not (folder / name).is_file():
                raise DataError(
                    f"{folder / name} is missing; run `dvc repro`, or `stillmark retrain`"
                )
        table = pyarrow.parquet.read_table(folder / "manifest.parquet")
        self.schema: dict[str, Any] = json.loads(
            (folder / "schema.json").read_text(encoding="utf-8")
        )
        self._names = np.asarray(table["row"].to_pylist())
        self._splits = np.asarray(table["split"].to_pylist())
        self._shown = np.asarray(table["shown"].to_pylist(), dtype=bool)
        number = {name: at for at, name in enumerate(self.classes)}
        labels = [HIDDEN if name is None else number[name] for name in table["label"].to_pylist()]
        self._labels = np.asarray(labels, dtype=np.int64)
        self._inputs = np.load(folder / "rows.npy", mmap_mode="r")

    @property
    def classes(self) -> list[str]:
        """Class names; a label is a position in this list."""
        return self.schema["classes"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one encoded row."""
        return tuple(self.schema["shape"])

    @cached_property
    def modality(self) -> Modality:
        """The modality that encoded the rows."""
        return MODALITIES.parse(self.schema["modality"])

    @cached_property
    def train(self) -> Part:
        """Every row that training may see, with shown labels only: few labels and the pool."""
        return self._part("train", show_all=False)

    @cached_property
    def validation(self) -> Part:
        """The validation rows whose labels the budget shows: the only ones choices are made on."""
        return self._part("validation", show_all=False).labelled

    def open_test(self) -> Part:
        """The labelled test rows. Opened once per candidate, by the evaluation alone."""
        return self._part("test", show_all=True).labelled

    def open_oracle(self) -> Part:
        """The training rows with every label there is, for the all-labels reference in reports."""
        return self._part("train", show_all=True).labelled

    def _part(self, split: str, *, show_all: bool) -> Part:
        chosen = self._splits == split
        visible = self._shown[chosen] | show_all
        labels = np.where(visible, self._labels[chosen], HIDDEN)
        return Part(self._names[chosen], self._inputs[chosen], labels)
