"""Prepared rows, as stages read them: labels that may not be seen cannot be reached by accident."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from tasks.budget import LabelBudget, Redraw, Row, show_labels
from tasks.errors import DataError
from tasks.modalities import CONTENTS_FILE, Encoding, Modality
from tasks.sections import parse

HIDDEN = -1


@dataclass(frozen=True)
class Part:
    """Some of the rows.

    Attributes:
        names: sha256 of each row's content, (N,).
        inputs: Encoded rows, (N, …); memory-mapped.
        labels: Class numbers, (N,), with -1 where the label is hidden or unknown.
        encoding: What the encoded rows mean.
        contents: The rows' own bytes, (N,), where the modality keeps them.
    """

    names: NDArray[np.str_]
    inputs: NDArray[Any]
    labels: NDArray[np.int64]
    encoding: Encoding
    contents: NDArray[np.object_] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def texts(self) -> list[str] | None:
        """The rows as texts, where they are texts."""
        if self.contents is None or not self.encoding.modality.texts:
            return None
        return [content.decode() for content in self.contents]

    @property
    def raw(self) -> list[str] | list[bytes] | NDArray[Any]:
        """The rows as a model's `predict` takes them: texts, their own bytes, or arrays."""
        if self.texts is not None:
            return self.texts
        return np.asarray(self.inputs) if self.contents is None else list(self.contents)

    @property
    def labelled(self) -> "Part":
        """Those rows whose label is shown; the part itself, not a copy, where all are."""
        shown = self.labels != HIDDEN
        return self if shown.all() else self._where(shown)

    @property
    def hidden(self) -> "Part":
        """Those rows that show no label."""
        return self._where(self.labels == HIDDEN)

    def first(self) -> "Part":
        """The first row alone."""
        return self.take(np.arange(1))

    def take(self, positions: NDArray[np.int64]) -> "Part":
        """Rows by their positions, in that order."""
        return self._where(positions)

    def _where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Part":
        contents = None if self.contents is None else self.contents[chosen]
        return Part(
            self.names[chosen], self.inputs[chosen], self.labels[chosen], self.encoding, contents
        )


class Rows:
    """The rows that the data stage prepared.

    Args:
        folder: Holds `manifest.parquet`, `rows.npy` and `schema.json`.
        redraw: Shows other labels than the manifest does, for comparisons over several draws.

    Raises:
        DataError: One of these files is missing, or the labels do not suffice for the budget.
    """

    def __init__(self, folder: Path, redraw: Redraw | None = None) -> None:
        for name in ("manifest.parquet", "rows.npy", "schema.json"):
            if not (folder / name).is_file():
                raise DataError(
                    f"{folder / name} is missing; run `dvc repro`, or `stillmark retrain`"
                )
        table = pyarrow.parquet.read_table(folder / "manifest.parquet")
        self.folder = folder
        self.schema: dict[str, Any] = json.loads(
            (folder / "schema.json").read_text(encoding="utf-8")
        )
        self._names = np.asarray(table["row"].to_pylist())
        self._splits = np.asarray(table["split"].to_pylist())
        names: list[str | None] = table["label"].to_pylist()
        self._sources: list[str] = table["source"].to_pylist()
        self._shown = np.asarray(table["shown"].to_pylist(), dtype=bool)
        if redraw is not None:
            self._shown = self._show(names, redraw)
        number = {name: at for at, name in enumerate(self.classes)}
        labels = [HIDDEN if name is None else number[name] for name in names]
        self._labels = np.asarray(labels, dtype=np.int64)
        self._true = self._labels.copy()
        if redraw is not None and redraw.shuffled:
            self._shuffle(redraw.draw)
        self._inputs = np.load(folder / "rows.npy", mmap_mode="r")
        self._contents = _contents(folder / CONTENTS_FILE)

    @property
    def classes(self) -> list[str]:
        """Class names; a label is a position in this list."""
        return self.schema["classes"]

    @cached_property
    def encoding(self) -> Encoding:
        """What the encoded rows mean."""
        return Encoding.of_schema(self.schema)

    @property
    def modality(self) -> Modality:
        """The modality that encoded the rows."""
        return self.encoding.modality

    @property
    def budget(self) -> LabelBudget:
        """The label budget that the rows were prepared with."""
        return parse(LabelBudget, self.schema["budget"], "schema.json: budget")

    @property
    def unseen(self) -> list[int]:
        """Numbers of the classes of which no label is ever shown."""
        return [self.classes.index(name) for name in self.budget.unseen_classes]

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

    @property
    def test_sources(self) -> NDArray[np.str_]:
        """The folder that each row of `open_test` came from, or the file where it holds many."""
        known = (self._splits == "test") & (self._labels != HIDDEN)
        return np.asarray(
            [
                place_of(source)
                for source, wanted in zip(self._sources, known, strict=True)
                if wanted
            ],
            dtype=np.str_,
        )

    def open_oracle(self) -> Part:
        """The training rows with every label there is, for the all-labels reference in reports."""
        return self._part("train", show_all=True).labelled

    def _show(self, labels: list[str | None], budget: LabelBudget) -> NDArray[np.bool_]:
        found = zip(self._names.tolist(), labels, self._splits.tolist(), strict=True)
        rows = [Row(name, label, split, source="") for name, label, split in found]
        return np.asarray([row.shown for row in show_labels(rows, budget)])

    def _shuffle(self, seed: int) -> None:
        chosen = self._shown & (self._splits == "train")
        self._labels[chosen] = np.random.default_rng(seed).permutation(self._labels[chosen])

    def _part(self, split: str, *, show_all: bool) -> Part:
        chosen = self._splits == split
        if show_all:
            labels = self._true[chosen]
        else:
            labels = np.where(self._shown[chosen], self._labels[chosen], HIDDEN)
        contents = None if self._contents is None else self._contents[chosen]
        return Part(self._names[chosen], self._inputs[chosen], labels, self.encoding, contents)


def place_of(source: str) -> str:
    """`cats/001.jpg` lies in `cats`; `rows.csv#7` in `rows.csv`; `seven.png` in `.`."""
    file, numbered, _ = source.partition("#")
    return file if numbered else PurePosixPath(file).parent.as_posix()


def _contents(path: Path) -> NDArray[np.object_] | None:
    if not path.is_file():
        return None
    found = pyarrow.parquet.read_table(path)["content"].to_pylist()
    contents = np.empty(len(found), dtype=object)
    contents[:] = found
    return contents
