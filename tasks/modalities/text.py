"""Texts: CSV or Parquet with a `text` column, or .txt files in class folders."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tasks import records
from tasks.errors import DataError
from tasks.modalities import Modality, RawRow, RowClassifier
from tasks.runtimes import text as runtime

if TYPE_CHECKING:
    from torch import Tensor

SPECIAL = ["[PAD]", "[UNK]", "[MASK]"]  # numbered as in the runtime
LARGEST_AUTOMATIC_LENGTH = 128
LENGTH_MULTIPLE = 4
COVERED_PERCENT = 95
SEEN_AT_LEAST = 2
WORD_START = "▁"


class Text(Modality):
    """Texts as rows of subword tokens.

    The tokenizer is byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) over characters,
    trained on the training rows, labels unused. Characters that these hold more rarely than half
    the vocabulary's worth of others, or never, become one unknown token.

    Attributes:
        length: Tokens per row; `auto` takes the 95th percentile of the training rows, rounded up
            to a multiple of 4, at most 128. Longer texts are cut off.
        vocabulary: Tokens to learn at most; few training rows give fewer.
        lowercase: Reads capitals as small letters.
    """

    requirements: ClassVar[tuple[str, ...]] = ("tokenizers",)
    keeps_contents: ClassVar[bool] = True
    texts: ClassVar[bool] = True

    name: Literal["text"] = "text"
    length: Annotated[int, Field(ge=4, le=512)] | Literal["auto"] = "auto"
    vocabulary: Annotated[int, Field(ge=64, le=65536)] = 2000
    lowercase: bool = True

    def read(self, folder: Path) -> Iterator[RawRow]:
        """See `Modality.read`; hidden files and files of other kinds are passed over."""
        for name, path in records.files(folder):
            suffix = path.suffix.lower()
            if suffix in records.SUFFIXES:
                yield from _record_rows(path, name)
            elif suffix == ".txt":
                split, label = records.place(PurePosixPath(name), "text")
                yield RawRow(name, _cleaned_file(path.read_bytes()), label, split)

    def survey(self, contents: Iterator[bytes]) -> dict[str, Any]:
        """Trains the tokenizer and settles `length`."""
        texts = list(_texts(contents))
        tokenizer = self._trained(texts)
        length = self.length if self.length != "auto" else _automatic_length(tokenizer, texts)
        return {
            "tokenizer": _stored(tokenizer),
            "length": length,
            "shape": [length],
            "dtype": "int32",
            "input_shape": [length, tokenizer.get_vocab_size()],
        }

    def encode(self, content: bytes, schema: dict[str, Any]) -> NDArray[np.int32]:
        """Token numbers (length,); the runtime's own rule."""
        tokenizer = runtime.tokenizer_of(schema["tokenizer"])
        found = runtime.tokenize([_decoded(content)], tokenizer, schema["length"])
        return found[0].astype(np.int32)

    def to_network(self, batch: "Tensor") -> "Tensor":
        """Token numbers (N, length) as int64, which embeddings take."""
        return batch.long()

    def classifier(self, folder: Path, threads: int = 1) -> RowClassifier:
        """`runtimes.text.TextClassifier`."""
        return runtime.TextClassifier(folder, threads)

    @property
    def runtime(self) -> Path:
        """`runtimes/text.py`."""
        return Path(runtime.__file__)

    def _trained(self, texts: Sequence[str]) -> Tokenizer:
        tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[runtime.UNKNOWN], fuse_unk=True))
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        case = [normalizers.Lowercase()] if self.lowercase else []
        tokenizer.normalizer = normalizers.Sequence([*case, spaces])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace(WORD_START, "first")]
        )
        alphabet = _alphabet(tokenizer, texts, self.vocabulary // 2)
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            min_frequency=SEEN_AT_LEAST,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer


def _alphabet(tokenizer: Tokenizer, texts: Sequence[str], largest: int) -> list[str]:
    """The commonest characters.

    Chosen here, as the trainer's own choice among equally common ones differs from run to run.
    """
    normalizer = tokenizer.normalizer
    counts = Counter(WORD_START)
    for text in texts:
        counts.update(normalizer.normalize_str(text).replace(" ", WORD_START))
    return sorted(counts, key=lambda character: (-counts[character], character))[:largest]


def _stored(tokenizer: Tokenizer) -> str:
    """A tokenizer as JSON, in which texts such as "[PAD]" are ordinary ones."""
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = []
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":"))


def _automatic_length(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    if not texts:
        return LARGEST_AUTOMATIC_LENGTH
    lengths = [len(tokenizer.encode(text).ids) for text in texts]
    covering = float(np.percentile(lengths, COVERED_PERCENT))
    rounded = math.ceil(covering / LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return min(max(rounded, LENGTH_MULTIPLE), LARGEST_AUTOMATIC_LENGTH)


def _texts(contents: Iterator[bytes]) -> Iterator[str]:
    for content in contents:
        try:
            yield runtime.cleaned(_decoded(content))
        except ValueError:
            continue  # encode() meets the same row and names it


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8 ({error})") from None


def _cleaned_file(content: bytes) -> bytes:
    try:
        return runtime.cleaned(_decoded(content)).encode()
    except ValueError:
        return content  # encode() refuses it with the reason


def _record_rows(path: Path, name: str) -> Iterator[RawRow]:
    for source, row in records.read(path, name):
        if "text" not in row:
            raise DataError(
                f"data/{name} has the columns {sorted(row)}, expected 'text', and optionally "
                "'label' and 'split'"
            )
        text = "" if row["text"] is None else row["text"]
        if not isinstance(text, str):
            raise DataError(f"data/{source}: 'text' holds {type(text).__name__}, expected text")
        label, split = records.label_and_split(row, source)
        yield RawRow(source, _cleaned_file(text.encode()), label, split)
