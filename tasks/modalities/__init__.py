"""Modalities: how a user's files become rows, and rows become what a network takes."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.drawers import Drawer
from tasks.sections import Section

if TYPE_CHECKING:
    from torch import Tensor


CONTENTS_FILE = "contents.parquet"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as the user stored it.

    Attributes:
        source: Where it lies, for messages and the manifest.
        content: Its bytes; their sha256 is the row's name.
        label: The class, or None where nobody has labelled it.
        split: `train` or `test` where the user's folders say so, else None.
    """

    source: str
    content: bytes
    label: str | None
    split: str | None


class RowClassifier(Protocol):
    """A stored model that runs on prepared rows and on raw ones; see `runtimes/`."""

    classes: list[str]

    def probabilities(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Class probabilities (N, classes) of encoded rows (N, …)."""
        ...

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        """A data frame with `label`, `probability` and `probabilities` for raw rows."""
        ...


class Modality(Section):
    """Contract of a modality. Imports no torch: the data stage must start in a moment.

    Attributes:
        requirements: Packages that the file in `runtimes/` needs, as pip names them.
        keeps_contents: Whether the prepared folder holds the rows' own bytes beside the encoded
            rows, for models that read those: scikit-learn's on texts, and older versions, whose
            encoding was fitted to other rows.
        texts: Whether a row's own bytes are a text in UTF-8.
    """

    requirements: ClassVar[tuple[str, ...]] = ()
    keeps_contents: ClassVar[bool] = False
    texts: ClassVar[bool] = False

    @abstractmethod
    def read(self, folder: Path) -> Iterator[RawRow]:
        """Yields every row below a folder, in a fixed order.

        Raises:
            DataError: A source file cannot be read at all, or lacks a needed column.
        """

    @abstractmethod
    def survey(self, contents: Iterator[bytes]) -> dict[str, Any]:
        """Looks at the training rows once and states what all rows will look like.

        Returns:
            Plain data, stored as `schema.json` and passed to `encode`. It must hold `shape`, that
            of an encoded row, and may hold `dtype` (numpy's name; uint8 by default) and
            `input_shape`, what networks are built for, where that is not `shape`.
        """

    @abstractmethod
    def encode(self, content: bytes, schema: dict[str, Any]) -> NDArray[Any]:
        """One row as an array of the schema's shape and dtype.

        Raises:
            ValueError: The content cannot be decoded; the caller names the row.
        """

    @abstractmethod
    def to_network(self, batch: "Tensor") -> "Tensor":
        """A stored batch as the network takes it; must equal what the runtime does."""

    @abstractmethod
    def classifier(self, folder: Path, threads: int = 1) -> RowClassifier:
        """Loads the model in a folder (`model.onnx`, `schema.json`) the way the edge does."""

    @property
    @abstractmethod
    def runtime(self) -> Path:
        """The file in `runtimes/` that serves this modality."""


MODALITIES = Drawer("tasks.modalities", Modality)


@dataclass(frozen=True)
class Encoding:
    """A modality fitted to the training rows: all that turns an encoded row into an input.

    Attributes:
        modality: How.
        schema: What `survey` found, and the classes.
    """

    modality: Modality
    schema: dict[str, Any]

    @classmethod
    def of_schema(cls, schema: dict[str, Any]) -> "Encoding":
        """The encoding that a `schema.json` states."""
        return cls(MODALITIES.parse(schema["modality"]), schema)

    @property
    def classes(self) -> list[str]:
        """Class names; a label is a position in this list."""
        return self.schema["classes"]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """What networks are built for.

        Images (side, side, channels), text (length, vocabulary), tables (features,).
        """
        return tuple(self.schema.get("input_shape", self.schema["shape"]))

    def to_network(self, stored: "Tensor") -> "Tensor":
        """A stored batch as the network takes it."""
        return self.modality.to_network(stored)
