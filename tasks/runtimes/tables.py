"""Tables at the edge: raw rows in, labels and probabilities out, through ONNX Runtime.

Needs numpy, pandas and onnxruntime only.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH_SIZE = 1024
LARGEST_SCORE = 1e4  # among n training rows no z-score is above √n
SHOWN_CHARACTERS = 40
NOTHING = frozenset({"None", "nan", "NaN", "<NA>", "NaT"})


def is_missing(value: Any) -> bool:  # noqa: ANN401
    """Whether a cell is empty: None, a text of no more than spaces, or any not-a-number."""
    if isinstance(value, str):
        return not value.strip()
    return str(value) in NOTHING


def number(value: Any) -> float | None:  # noqa: ANN401
    """A cell as a number; NaN where its text says so, None where it is no finite number."""
    if isinstance(value, str) and "_" in value:  # Python would read '1_2' as 12
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isinf(found) else found


def category(value: Any) -> str:  # noqa: ANN401
    """A cell as the name of a category; 1.0 is '1', as pandas turns 1 into 1.0 beside a gap."""
    if isinstance(value, float | np.floating) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def width(column: Mapping[str, Any]) -> int:
    """How many features a column becomes."""
    if column["kind"] == "numeric":
        return 1 + column["flag"]
    return len(column["categories"]) + column["other"] + column["missing"]


def encode(row: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """Turns one row's cells into the network's numbers.

    The stated rule, column by column. Numeric: the z-score (0 where the cell is empty), then, where
    the column has a `flag`, 1 for an empty cell. Categorical: one place for each category, one for
    every `other` and one for `missing`, where the column has these; 1 in the cell's place.

    Args:
        row: Cells by column; others than `columns` names are passed over.
        columns: What the training rows said of each column, from `schema.json`.

    Returns:
        Features (features,).

    Raises:
        ValueError: A column is not there, or a numeric one holds something else than a number.
    """
    absent = [f"'{column['name']}'" for column in columns if column["name"] not in row]
    if absent:
        raise ValueError(
            f"the columns {', '.join(absent)} are missing; pass all that it was trained on"
        )
    features: list[float] = []
    for column in columns:
        encoded = _numeric if column["kind"] == "numeric" else _categorical
        features += encoded(row[column["name"]], column)
    return np.asarray(features, np.float32)


def _numeric(value: Any, column: Mapping[str, Any]) -> list[float]:  # noqa: ANN401
    found = math.nan if is_missing(value) else number(value)
    if found is None:
        raise ValueError(
            f"column '{column['name']}' is '{str(value)[:SHOWN_CHARACTERS]}', expected a finite "
            "number or nothing"
        )
    empty = math.isnan(found)
    score = 0.0 if empty else (found - column["mean"]) / column["deviation"]
    score = min(max(score, -LARGEST_SCORE), LARGEST_SCORE)
    return [score, float(empty)] if column["flag"] else [score]


def _categorical(value: Any, column: Mapping[str, Any]) -> list[float]:  # noqa: ANN401
    categories = column["categories"]
    places = [0.0] * width(column)
    if is_missing(value):
        place = -1 if column["missing"] else None
    elif (name := category(value)) in categories:
        place = categories.index(name)
    else:
        place = len(categories) if column["other"] else None
    if place is not None:
        places[place] = 1.0
    return places


class TableClassifier:
    """A stored model, ready to predict.

    Args:
        folder: Holds `model.onnx` and `schema.json` (classes, columns).
        threads: Threads that ONNX Runtime may use.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        import onnxruntime  # noqa: PLC0415 - preparing data needs this file but no runtime

        schema = json.loads((folder / "schema.json").read_text(encoding="utf-8"))
        self.classes: list[str] = schema["classes"]
        self.columns: list[dict[str, Any]] = schema["columns"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, classes) of features (N, features)."""
        name = self.session.get_inputs()[0].name
        batches = range(0, len(features), BATCH_SIZE)
        found = [
            np.asarray(self.session.run(None, {name: features[at : at + BATCH_SIZE]})[0])
            for at in batches
        ]
        return np.concatenate(found) if found else np.zeros((0, len(self.classes)), np.float32)

    def probabilities(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Softmax of the logits, (N, classes), of features (N, features)."""
        logits = self.logits(rows)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:  # noqa: ANN401, ARG002
        """Labels of raw rows; the signature is that of an MLflow pyfunc.

        Args:
            model_input: A data frame, a list of rows, a dict of equally long columns, or one row. A
                row is a dict of cells by column, or the JSON of one. Columns that the model does
                not know are passed over.
            params: Unused; MLflow passes it.

        Returns:
            A data frame: `label`, `probability` of that label, `probabilities` in class order.

        Raises:
            ValueError: A row lacks a column, or a numeric one holds something else than a number;
                the row's position is named.
        """
        import pandas  # noqa: PLC0415 - as above

        features = [self._features(row, at) for at, row in enumerate(_rows(model_input))]
        shape = (-1, sum(width(column) for column in self.columns))
        probabilities = self.probabilities(np.asarray(features, np.float32).reshape(shape))
        best = probabilities.argmax(axis=1) if len(probabilities) else np.zeros(0, int)
        return pandas.DataFrame(
            {
                "label": [self.classes[at] for at in best],
                "probability": [
                    float(row[at]) for row, at in zip(probabilities, best, strict=True)
                ],
                "probabilities": [[float(value) for value in row] for row in probabilities],
            }
        )

    def _features(self, row: Any, position: int) -> NDArray[np.float32]:  # noqa: ANN401
        try:
            return encode(_cells(row), self.columns)
        except (ValueError, TypeError) as error:
            raise ValueError(f"input {position}: {error}") from None


def _rows(model_input: Any) -> Sequence[Any]:  # noqa: ANN401
    """The single rows in whatever a caller passed."""
    if isinstance(model_input, str | bytes):
        return [model_input]
    if isinstance(model_input, Mapping):
        if not any(np.ndim(cell) for cell in model_input.values()):
            # A served dict arrives as arrays without dimensions.
            return [{name: np.asarray(cell)[()] for name, cell in model_input.items()}]
        import pandas  # noqa: PLC0415 - as above

        model_input = pandas.DataFrame(model_input)
    if hasattr(model_input, "columns"):
        return model_input.to_dict(orient="records")
    return list(model_input)


def _cells(row: Any) -> Mapping[str, Any]:  # noqa: ANN401
    cells = json.loads(row) if isinstance(row, str | bytes) else row
    if not isinstance(cells, Mapping):
        raise TypeError(
            f"a row is of type {type(cells).__name__}, expected a dict of cells by column"
        )
    return cells


def _load_pyfunc(path: str) -> TableClassifier:
    """MLflow's entry point: `path` is the stored folder."""
    return TableClassifier(Path(path))
