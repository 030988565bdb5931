"""Rows that arrive: what waits in the incoming folder, and its way into the data."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from tasks import records
from tasks.errors import DataError
from tasks.lineage.digests import digest_of_file, digest_of_value
from tasks.modalities import CONTENTS_FILE, MODALITIES, Modality, RawRow
from tasks.modalities.tables import Tables
from tasks.prepare import RAW
from tasks.runtimes import tables as table_runtime
from tasks.triggers import ARRIVED, Sample

INTENT_FILE = "absorb.json"
DIGITS = 16
NAMED_AT_MOST = 5


class Waiting(NamedTuple):
    """One row of the incoming folder.

    Attributes:
        row: sha256 of its content.
        content: Its bytes.
        label: Its class, or None.
        source: Where it lies, the folder's name included.
    """

    row: str
    content: bytes
    label: str | None
    source: str


class _ArrivingTables(Tables):
    """Tables whose labels come later, with a column that none of the files has yet."""

    def _refuse_absent(self, seen: set[str]) -> None:
        """Columns that say nothing of the class may be missing here."""


def read(folder: Path, modality: Modality) -> list[Waiting]:
    """Every distinct row of the incoming folder, by content; of two labels the first counts.

    Raises:
        DataError: The folder is missing, or a file cannot be read at all.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder.name}/ is missing; make it, and put rows that arrive there in the layouts "
            "of data/"
        )
    if isinstance(modality, Tables):
        modality = _ArrivingTables.model_validate(modality.model_dump())
    found: dict[str, Waiting] = {}
    try:
        for raw in modality.read(folder):
            row = _waiting(raw, folder.name)
            first = found.setdefault(row.row, row)
            if first.label is None and row.label is not None:
                found[row.row] = row
    except DataError as error:
        # The readers know one folder only.
        raise DataError(str(error).replace("data/", f"{folder.name}/")) from None
    return sorted(found.values())


def _waiting(raw: RawRow, folder: str) -> Waiting:
    digest = hashlib.sha256(raw.content).hexdigest()
    return Waiting(digest, raw.content, raw.label, f"{folder}/{raw.source}")


def digest_of(rows: Sequence[Waiting]) -> str:
    """One sha256 for rows and their labels, wherever they lie."""
    return digest_of_value([[row.row, row.label] for row in rows])


def woken_by_rows(about: str) -> bool:
    """Whether rows that arrived are what a retraining is about."""
    return about.startswith(ARRIVED)


@dataclass(frozen=True)
class Known:
    """One version of the prepared data, as the champion used it.

    Attributes:
        names: sha256 of each row's content, (N,).
        splits: Split of each row, (N,).
        labels: Class of each row, whether or not it was shown; None where there is none, (N,).
        inputs: Encoded rows, (N, …), memory-mapped.
        schema: What the encoding was fitted to.
        contents: File with the rows' own bytes, where the modality keeps them.
    """

    names: NDArray[np.str_]
    splits: NDArray[np.str_]
    labels: NDArray[np.object_]
    inputs: NDArray[Any]
    schema: dict[str, Any]
    contents: Path | None

    @classmethod
    def open(cls, files: dict[str, Path]) -> "Known":
        """Opens a version.

        Args:
            files: Where its files lie, by the names that the data stage gave them.

        Raises:
            DataError: One is missing or is none of the data stage's.
        """
        try:
            table = pyarrow.parquet.read_table(
                files["manifest.parquet"], columns=["row", "split", "label"]
            )
            return cls(
                names=np.asarray(table["row"].to_pylist(), dtype=np.str_),
                splits=np.asarray(table["split"].to_pylist(), dtype=np.str_),
                labels=np.asarray(table["label"].to_pylist(), dtype=object),
                inputs=np.load(files["rows.npy"], mmap_mode="r"),
                schema=json.loads(files["schema.json"].read_text(encoding="utf-8")),
                contents=files.get(CONTENTS_FILE),
            )
        except (KeyError, OSError, ValueError, pyarrow.ArrowException) as error:
            raise DataError(
                f"the champion's prepared rows cannot be read ({str(error).splitlines()[0]}); "
                "`dvc pull` them, or retrain"
            ) from None

    @property
    def modality(self) -> Modality:
        """The modality that encoded the rows."""
        return MODALITIES.parse(self.schema["modality"])

    def drawn(self, *, training: bool, most: int, seed: int) -> NDArray[np.intp]:
        """Positions of some training rows, or of rows held out from training, in order."""
        places = np.flatnonzero((self.splits == "train") == training)
        return _drawn(places, most, seed)

    def sample(self, places: NDArray[np.intp]) -> Sample:
        """Rows by their positions."""
        inputs = np.asarray(self.inputs[places])
        return sample_of(inputs, self._contents(places), self.modality, self.schema)

    def raw(self, places: NDArray[np.intp]) -> list[str] | list[bytes] | NDArray[Any]:
        """The same as a model's `predict` takes them, whatever it was made for."""
        contents = self._contents(places)
        if contents is None:
            return np.asarray(self.inputs[places])
        return [found.decode() for found in contents] if self.modality.texts else contents

    def _contents(self, places: NDArray[np.intp]) -> list[bytes] | None:
        if self.contents is None:
            return None
        kept = pyarrow.parquet.read_table(self.contents, columns=["content"])["content"]
        return kept.take(pyarrow.array(places)).to_pylist()


def _drawn(places: NDArray[np.intp], most: int, seed: int) -> NDArray[np.intp]:
    if len(places) <= most:
        return places
    return np.sort(np.random.default_rng(seed).choice(places, most, replace=False))


def encoded(
    rows: Sequence[Waiting], modality: Modality, schema: dict[str, Any]
) -> tuple[list[Waiting], NDArray[Any], dict[str, str]]:
    """Encodes rows that arrived as a model's own schema says.

    Returns:
        The rows that can be read, what they become (N, …), and why others cannot, by where they
        lie.
    """
    good: list[Waiting] = []
    inputs: list[NDArray[Any]] = []
    unreadable: dict[str, str] = {}
    for row in rows:
        try:
            inputs.append(modality.encode(row.content, schema))
        except ValueError as error:
            unreadable[row.source] = str(error)
        else:
            good.append(row)
    shape = (len(good), *schema["shape"])
    dtype = np.dtype(schema.get("dtype", "uint8"))
    return good, np.asarray(inputs, dtype).reshape(shape), unreadable


def choose(rows: Sequence[Waiting], most: int, seed: int) -> list[Waiting]:
    """Some rows, drawn at random whatever order they arrived in."""
    return [rows[at] for at in _drawn(np.arange(len(rows)), most, seed)]


def sample_of(
    inputs: NDArray[Any], contents: list[bytes] | None, modality: Modality, schema: dict[str, Any]
) -> Sample:
    """Rows as triggers compare them: tables by their cells, texts as texts, others encoded."""
    if contents is not None and isinstance(modality, Tables):
        rows = [json.loads(content) for content in contents]
        return Sample(inputs, {found["name"]: _column(found, rows) for found in schema["columns"]})
    if contents is not None and modality.texts:
        return Sample(inputs, texts=[content.decode("utf-8-sig") for content in contents])
    return Sample(inputs)


def _column(column: dict[str, Any], rows: list[dict[str, Any]]) -> NDArray[np.generic]:
    cells = [row[column["name"]] for row in rows]
    if column["kind"] == "numeric":
        numbers = [None if table_runtime.is_missing(cell) else cell for cell in cells]
        return np.asarray(
            [np.nan if cell is None else table_runtime.number(cell) for cell in numbers], np.float64
        )
    texts = [
        "" if table_runtime.is_missing(cell) else table_runtime.category(cell) for cell in cells
    ]
    return np.asarray(texts, dtype=np.str_)


def named(unreadable: dict[str, str]) -> str:
    """Rows that cannot be read, for the end of a sentence; nothing where there are none."""
    if not unreadable:
        return ""
    items = [f"{source}: {why}" for source, why in sorted(unreadable.items())]
    more = f" and {len(items) - NAMED_AT_MOST} more" if len(items) > NAMED_AT_MOST else ""
    return f"; cannot be read: {'; '.join(items[:NAMED_AT_MOST])}{more}"


def absorb(root: Path, home: Path, incoming: str) -> int:
    """Moves all that waits into `data/`, each file into a folder that no other can have.

    A file keeps its class folder and its split, and a row its content, so that it falls into the
    split that its digest says; rows that are there already are merged when they are prepared. What
    a killed call had begun is finished first. Call it where nobody else prepares data or absorbs.

    Folders stay, as whoever puts files there may count on them.

    Args:
        root: The project's folder.
        home: Where a note of the moves is kept until they are done.
        incoming: The folder's name, relative to the project's.

    Returns:
        How many files moved.

    Raises:
        DataError: A file cannot be moved; nothing is lost, and the next call goes on.
    """
    done = resume(root, home)
    folder = root / incoming
    waiting = list(records.files(folder)) if folder.is_dir() else []
    if not waiting:
        return done
    digests = {name: digest_of_file(path).sha256 for name, path in waiting}
    mark = f"arrived-{digest_of_value(digests)[:DIGITS]}"
    moves = [
        {"source": f"{incoming}/{name}", "target": (RAW / _place(name, mark)).as_posix(), "is": is_}
        for name, is_ in digests.items()
    ]
    _write(home / INTENT_FILE, json.dumps({"moves": moves}))
    return done + resume(root, home)


def resume(root: Path, home: Path) -> int:
    """Finishes what a killed `absorb` had begun; returns how many files still had to move.

    Raises:
        DataError: As `absorb`.
    """
    note = home / INTENT_FILE
    if not note.is_file():
        return 0
    intent = json.loads(note.read_text(encoding="utf-8"))
    moved = sum(
        _move(root / move["source"], root / move["target"], move["is"]) for move in intent["moves"]
    )
    note.unlink()
    return moved


def _place(name: str, mark: str) -> PurePosixPath:
    """The same place in `data/` with a folder of its own below the class's, where there is one."""
    parts = PurePosixPath(name).parts
    kept = 2 if parts[0] in records.SPLITS else 1
    kept = min(kept, len(parts) - 1)
    return PurePosixPath(*parts[:kept], mark, *parts[kept:])


def _move(source: Path, target: Path, sha256: str) -> bool:
    """Moves a file that was not moved before; what came under its name since then stays."""
    try:
        if not target.exists():
            if not source.exists():
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            _rename(source, target)
            return True
        if source.exists() and digest_of_file(source).sha256 == sha256:
            if digest_of_file(target).sha256 != sha256:
                raise DataError(f"{target} is another file than {source}; rename the latter")
            source.unlink()
    except OSError as error:
        raise DataError(
            f"{source} cannot be moved to {target} ({error.strerror}); make room or mend the "
            "permissions: the next retraining goes on with it"
        ) from None
    return False


def _rename(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_over(source, target)


def _copy_over(source: Path, target: Path) -> None:
    """From another file system; the name starts with a dot until the copy is whole."""
    partial = target.with_name(f".{target.name}")
    shutil.copyfile(source, partial)
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.replace(target)
    source.unlink()


def _write(path: Path, text: str) -> None:
    """As a whole, and on the disk before any file moves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
