"""Texts at the edge: raw texts in, labels and probabilities out, through ONNX Runtime.

Needs numpy, tokenizers, pandas and onnxruntime only.
"""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

# Numbers of the tokens that stand for no text: filling, an unknown piece, a hidden piece.
PAD, UNKNOWN, MASK = 0, 1, 2
BATCH_SIZE = 256


def cleaned(text: str) -> str:
    """A text as it is read and stored: composed (NFC), without spaces around it.

    Raises:
        ValueError: Nothing remains, or a character is half of one (a lone surrogate).
    """
    found = unicodedata.normalize("NFC", text).strip()
    if not found:
        raise ValueError("an empty text")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise ValueError("a text with half a character (a lone surrogate)") from None
    return found


@lru_cache(maxsize=4)
def tokenizer_of(stored: str) -> Tokenizer:
    """The tokenizer that a schema holds as JSON."""
    return Tokenizer.from_str(stored)


def tokenize(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> NDArray[np.int64]:
    """Turns texts into the network's rows of tokens.

    The stated rule: a text is cleaned and split, what lies beyond `length` tokens is cut off, and
    shorter texts are filled with PAD.

    Args:
        texts: N texts.
        tokenizer: See `tokenizer_of`.
        length: Tokens per row.

    Returns:
        Token numbers, (N, length).

    Raises:
        ValueError: A text is empty.
    """
    rows = np.full((len(texts), length), PAD, dtype=np.int64)
    for row, text in zip(rows, texts, strict=True):
        # One by one: a batch would start threads of its own.
        numbers = tokenizer.encode(cleaned(text)).ids[:length]
        row[: len(numbers)] = numbers
    return rows


class TextClassifier:
    """A stored model, ready to predict.

    Args:
        folder: Holds `model.onnx` and `schema.json` (classes, tokenizer, length).
        threads: Threads that ONNX Runtime may use.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        import onnxruntime  # noqa: PLC0415 - preparing data needs this file but no runtime

        schema = json.loads((folder / "schema.json").read_text(encoding="utf-8"))
        self.classes: list[str] = schema["classes"]
        self.length: int = schema["length"]
        self.tokenizer = tokenizer_of(schema["tokenizer"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def logits(self, tokens: NDArray[Any]) -> NDArray[np.float32]:
        """Logits (N, classes) of token numbers (N, length)."""
        name = self.session.get_inputs()[0].name
        inputs = np.ascontiguousarray(tokens, dtype=np.int64)
        found = [
            np.asarray(self.session.run(None, {name: inputs[at : at + BATCH_SIZE]})[0])
            for at in range(0, len(inputs), BATCH_SIZE)
        ]
        return np.concatenate(found) if found else np.zeros((0, len(self.classes)), np.float32)

    def probabilities(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Softmax of the logits, (N, classes), of token numbers (N, length)."""
        logits = self.logits(rows)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:  # noqa: ANN401, ARG002
        """Labels of raw texts; the signature is that of an MLflow pyfunc.

        Args:
            model_input: Texts: a list, a data frame whose first column holds them, an array, a
                dict whose first value is one of these, or one text.
            params: Unused; MLflow passes it.

        Returns:
            A data frame: `label`, `probability` of that label, `probabilities` in class order.

        Raises:
            ValueError: An input is no text, or an empty one; its position is named.
        """
        import pandas  # noqa: PLC0415 - as above

        tokens = [self._tokens(item, at) for at, item in enumerate(_items(model_input))]
        probabilities = self.probabilities(np.asarray(tokens, np.int64).reshape(-1, self.length))
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

    def _tokens(self, item: Any, position: int) -> NDArray[np.int64]:  # noqa: ANN401
        if not isinstance(item, str):
            raise ValueError(  # noqa: TRY004 - one kind of error for whatever cannot be read
                f"input {position}: {type(item).__name__}, expected a text"
            )
        try:
            return tokenize([item], self.tokenizer, self.length)[0]
        except ValueError as error:
            raise ValueError(f"input {position}: {error}") from None


def _items(model_input: Any) -> Iterable[Any]:  # noqa: ANN401
    """The single texts in whatever a caller passed."""
    if isinstance(model_input, str):
        return [model_input]
    if hasattr(model_input, "columns"):
        return list(model_input.iloc[:, 0])
    if isinstance(model_input, dict):
        return _items(next(iter(model_input.values())))
    if isinstance(model_input, np.ndarray):
        return model_input.ravel().tolist()
    return list(model_input)


def _load_pyfunc(path: str) -> TextClassifier:
    """MLflow's entry point: `path` is the stored folder."""
    return TextClassifier(Path(path))
