"""Modalities: how a user's files become rows, and rows become what a network takes."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.drawers import Drawer
from tasks.sections import Section

if TYPE_CHECKING:
    from torch import Tensor


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

    def probabilities(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities (N, classes) of encoded rows (N, …)."""
        ...

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        """A data frame with `label`, `probability` and `probabilities` for raw rows."""
        ...


class Modality(Section):
    """Contract of a modality. Imports no torch: the data stage must start in a moment."""

    @abstractmethod
    def read(self, folder: Path) -> Iterator[RawRow]:
        """Yields every row below a folder, in a fixed order.

        Raises:
            DataError: A source file cannot be read at all, or lacks a needed column.
        """

    @abstractmethod
    def survey(self, contents: Iterator[bytes]) -> dict[str, Any]:
        """Looks at every readable row once and states the shape that all rows will have.

        Returns:
            Plain data, stored as `schema.json` and passed to `encode`; must hold `shape`.
        """

    @abstractmethod
    def encode(self, content: bytes, schema: dict[str, Any]) -> NDArray[np.uint8]:
        """One row as an array of the schema's shape.

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
