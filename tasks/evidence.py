"""Evidence as files: what a decision rested on, for anyone to read and judge again.

    predictions.parquet  one line per test row: digest, label, answers, probabilities
    pool.parquet         one line per unlabelled row: digest and answers, the teacher's too
    facts.json           everything else, as canonical JSON

Equal evidence gives equal bytes, so that one digest of the files can stand in the ledger.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.errors import ArtifactError
from tasks.gates import Evidence, Side
from tasks.lineage.digests import FileDigest, canonical, digest_of_file

PREDICTIONS_FILE, POOL_FILE, FACTS_FILE = "predictions.parquet", "pool.parquet", "facts.json"
FILES = (FACTS_FILE, POOL_FILE, PREDICTIONS_FILE)
COLUMN = "column."


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class _SideFacts(_Facts):
    version: int
    content: str
    size_bytes: int
    latency_ms: tuple[float, ...]
    lineage: tuple[str, ...]
    clean: bool
    membership: tuple[float, float, float] | None = None
    metrics: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def of(cls, side: Side) -> "_SideFacts":
        return cls(
            version=side.version,
            content=side.content,
            size_bytes=side.size_bytes,
            latency_ms=tuple(side.latency_ms.tolist()),
            lineage=side.lineage,
            clean=side.clean,
            membership=side.membership,
            metrics=side.metrics,
        )

    def side(
        self,
        labels: NDArray[np.str_],
        probabilities: NDArray[np.float32],
        pool_labels: NDArray[np.str_],
    ) -> Side:
        return Side(
            version=self.version,
            content=self.content,
            labels=labels,
            probabilities=probabilities,
            pool_labels=pool_labels,
            size_bytes=self.size_bytes,
            latency_ms=np.asarray(self.latency_ms, np.float64),
            lineage=self.lineage,
            clean=self.clean,
            membership=self.membership,
            metrics=self.metrics,
        )


class _EvidenceFacts(_Facts):
    schema_version: Annotated[int, Field(ge=1, le=1)] = 1
    rows: int
    pool: int
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    control: bool
    data_age_days: float
    challenger: _SideFacts
    champion: _SideFacts | None
    teacher: bool = False

    @property
    def sides(self) -> dict[str, _SideFacts]:
        champion = {} if self.champion is None else {"champion": self.champion}
        return {"challenger": self.challenger} | champion


def write(evidence: Evidence, folder: Path) -> dict[str, FileDigest]:
    """Writes evidence into a folder.

    Returns:
        The digest of each file by its name, as `tasks.lineage.digests.digest_of_files` takes them.
    """
    _write_table(_predictions(evidence), folder / PREDICTIONS_FILE)
    pool = {name: side.pool_labels for name, side in evidence.sides.items()}
    pool |= {} if evidence.teacher is None else {"teacher": evidence.teacher}
    _write_table({"row": evidence.pool, **pool}, folder / POOL_FILE)
    facts = canonical(_facts(evidence).model_dump(mode="json"))
    (folder / FACTS_FILE).write_bytes(facts)
    return {name: digest_of_file(folder / name) for name in FILES}


def _facts(evidence: Evidence) -> _EvidenceFacts:
    sides = {name: _SideFacts.of(side) for name, side in evidence.sides.items()}
    return _EvidenceFacts(
        rows=len(evidence.rows),
        pool=len(evidence.pool),
        classes=evidence.classes,
        columns=tuple(sorted(evidence.columns)),
        control=evidence.control is not None,
        data_age_days=evidence.data_age_days,
        challenger=sides["challenger"],
        champion=sides.get("champion"),
        teacher=evidence.teacher is not None,
    )


def _predictions(evidence: Evidence) -> dict[str, Any]:
    table: dict[str, Any] = {"row": evidence.rows, "label": evidence.labels}
    table |= {name: side.labels for name, side in evidence.sides.items()}
    if evidence.control is not None:
        table["control"] = evidence.control
    for name, side in evidence.sides.items():
        table[f"{name}_probabilities"] = _lists(side.probabilities)
    # The prefix keeps a user's column named `label` or `row` apart from ours.
    return table | {f"{COLUMN}{name}": evidence.columns[name] for name in sorted(evidence.columns)}


def _lists(probabilities: NDArray[np.float32]) -> pyarrow.Array:
    count, classes = probabilities.shape
    ends = pyarrow.array(np.arange(count + 1, dtype=np.int32) * np.int32(classes))
    return pyarrow.ListArray.from_arrays(ends, pyarrow.array(probabilities.ravel()))


def _write_table(columns: dict[str, Any], path: Path) -> None:
    arrays = {
        name: values if isinstance(values, pyarrow.Array) else pyarrow.array(values.tolist(), "str")
        for name, values in columns.items()
    }
    pyarrow.parquet.write_table(pyarrow.table(arrays), path, compression="zstd")


def read(folder: Path) -> Evidence:
    """Reads evidence back, exactly as it was written.

    Raises:
        ArtifactError: A file is missing, damaged, incomplete, or does not fit the others.
    """
    facts = _read_facts(folder / FACTS_FILE)
    names = tuple(facts.sides)
    control = ("control",) if facts.control else ()
    slices = tuple(f"{COLUMN}{name}" for name in facts.columns)
    lists = tuple(f"{name}_probabilities" for name in names)
    tests = _Table(
        folder / PREDICTIONS_FILE, ("row", "label", *names, *control, *lists, *slices), facts.rows
    )
    teacher = ("teacher",) if facts.teacher else ()
    pool = _Table(folder / POOL_FILE, ("row", *names, *teacher), facts.pool)
    sides = {
        name: found.side(
            tests.strings(name),
            tests.floats(f"{name}_probabilities", len(facts.classes)),
            pool.strings(name),
        )
        for name, found in facts.sides.items()
    }
    return Evidence(
        rows=tests.strings("row"),
        labels=tests.strings("label"),
        classes=facts.classes,
        columns={name: tests.strings(f"{COLUMN}{name}") for name in facts.columns},
        pool=pool.strings("row"),
        challenger=sides["challenger"],
        champion=sides.get("champion"),
        control=tests.strings("control") if facts.control else None,
        data_age_days=facts.data_age_days,
        teacher=pool.strings("teacher") if facts.teacher else None,
    )


def _read_facts(path: Path) -> _EvidenceFacts:
    try:
        return _EvidenceFacts.model_validate_json(path.read_bytes())
    except OSError:
        raise _missing(path) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _unfit(path, f"{where}: {first['msg']}".removeprefix(": ")) from None


class _Table:
    """A stored table, its columns and their lengths checked."""

    def __init__(self, path: Path, columns: tuple[str, ...], rows: int) -> None:
        try:
            self._table = pyarrow.parquet.read_table(path).combine_chunks()
        except FileNotFoundError:
            raise _missing(path) from None
        except (pyarrow.ArrowException, OSError) as error:
            raise _unfit(path, str(error)) from None
        self._path = path
        found = tuple(self._table.column_names)
        if found != columns:
            raise _unfit(path, f"it has the columns {found}, {FACTS_FILE} says {columns}")
        if len(self._table) != rows:
            raise _unfit(path, f"it has {len(self._table)} rows, {FACTS_FILE} says {rows}")

    def _column(self, name: str, kind: pyarrow.DataType) -> pyarrow.ChunkedArray:
        column = self._table[name]
        if column.type != kind or column.null_count:
            raise _unfit(self._path, f"column {name} is no whole {kind}")
        return column

    def strings(self, name: str) -> NDArray[np.str_]:
        return np.asarray(self._column(name, pyarrow.string()).to_pylist(), dtype=np.str_)

    def floats(self, name: str, width: int) -> NDArray[np.float32]:
        lists: Any = self._column(name, pyarrow.list_(pyarrow.float32())).combine_chunks()
        values = lists.flatten()
        if values.null_count or (lists.value_lengths().to_numpy() != width).any():
            raise _unfit(self._path, f"column {name} has no {width} values in every row")
        return values.to_numpy().reshape(len(lists), width)


def _missing(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} is missing; take all of {', '.join(FILES)} from the decision")


def _unfit(path: Path, found: str) -> ArtifactError:
    reason = " ".join(found.split())
    return ArtifactError(f"{path} is no whole evidence: {reason}; take it from the decision again")
