"""The index: all lineage records as one graph in SQLite, for questions that no record answers.

It holds nothing of its own. Thrown away, torn or of another schema, it is made again from the
registry.
"""

import hashlib
import json
import re
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.errors import DataError, SetupError
from tasks.lineage.graph import DATA_COLUMNS, Artifact, Copy, Edge, Graph, Held, Holding, Version
from tasks.lineage.store import TABLES, opened, stuck
from tasks.refs import DataRef

FEWEST_DIGITS = 8
PREFIX = re.compile(rf"[0-9a-f]{{{FEWEST_DIGITS},64}}(\.dir)?")

ANCESTORS = """
WITH RECURSIVE found (sha256) AS (
    SELECT value FROM json_each(?)
    UNION SELECT edges.parent FROM edges JOIN found ON edges.child = found.sha256
)
SELECT sha256 FROM found
"""
DESCENDANTS = """
WITH RECURSIVE found (sha256) AS (
    SELECT value FROM json_each(?)
    UNION SELECT edges.child FROM edges JOIN found ON edges.parent = found.sha256
)
SELECT sha256 FROM found
"""
# A parent that nobody has a record or a copy of.
MISSING = """
SELECT DISTINCT edges.parent, edges.model_id, edges.role FROM edges
LEFT JOIN records ON records.sha256 = edges.parent
LEFT JOIN copies ON copies.sha256 = edges.parent
WHERE records.sha256 IS NULL AND copies.sha256 IS NULL
"""
UNREADABLE = """
SELECT sha256, stage, role, run_id, model_id, reason FROM copies WHERE reason IS NOT NULL
"""


class Index:
    """The index of one project; not to be shared by threads.

    Args:
        path: Its file, made where it is missing; a torn one, or one of another schema, is replaced
            by an empty one, for the next refresh to fill.

    Raises:
        SetupError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = opened(path)
        self._missing: tuple[tuple[int, int], list[tuple[str, str, str]]] | None = None

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All or nothing."""
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
        except sqlite3.Error as error:
            raise SetupError(stuck(self.path, error)) from None

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise SetupError(stuck(self.path, error)) from None

    def clear(self) -> None:
        """Forgets everything."""
        with self._writing() as connection:
            for table in TABLES:
                connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names

    def add(self, copies: Iterable[Copy]) -> None:
        """Adds stored records; a copy that is known already is replaced."""
        with self._writing() as connection:
            for copy in copies:
                _add(connection, copy)

    def register(self, versions: Collection[Version], holdings: Collection[Holding]) -> None:
        """Replaces what is known of registered versions and their aliases."""
        if set(versions) == self._versions() and set(holdings) == self._holdings():
            return
        with self._writing() as connection:
            connection.execute("DELETE FROM versions")
            connection.execute("DELETE FROM holdings")
            connection.executemany("INSERT INTO versions VALUES (?, ?, ?, ?)", set(versions))
            connection.executemany("INSERT INTO holdings VALUES (?, ?, ?, ?)", set(holdings))

    def _versions(self) -> set[Version]:
        return {Version(*row) for row in self._read("SELECT * FROM versions")}

    def _holdings(self) -> set[Holding]:
        rows = self._read("SELECT name, number, alias, now FROM holdings")
        return {Holding(name, number, alias, bool(now)) for name, number, alias, now in rows}

    def note(self, name: str, value: str) -> None:
        """Keeps a word for the next refresh."""
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def noted(self, name: str) -> str | None:
        """What was kept under a name, or None."""
        found = self._read("SELECT value FROM notes WHERE name = ?", name)
        return found[0][0] if found else None

    def runs(self) -> set[str]:
        """MLflow runs whose record was read; those that could not be are to be tried again."""
        return {row[0] for row in self._read("SELECT run_id FROM copies WHERE reason IS NULL")}

    def digests(self) -> set[str]:
        """What stored copies say their records' digests are."""
        return {row[0] for row in self._read("SELECT DISTINCT sha256 FROM copies")}

    def count(self) -> int:
        """Records that are known."""
        return int(self._read("SELECT count(*) FROM records")[0][0])

    def missing(self) -> list[tuple[str, str, str]]:
        """Record, MLflow model (or empty) and role of parents that nothing else is known of."""
        # Looks at every edge: once for as long as nobody writes.
        ((others,),) = self._read("PRAGMA data_version")
        state = (others, self._connection.total_changes)
        if self._missing is None or self._missing[0] != state:
            found = [(digest, model, role) for digest, model, role in self._read(MISSING)]
            self._missing = (state, found)
        return self._missing[1]

    def unreadable(self) -> list[Copy]:
        """Stored records that could not be read."""
        return [
            Copy(stage, role, run_id, model_id or None, digest, None, reason)
            for digest, stage, role, run_id, model_id, reason in self._read(UNREADABLE)
        ]

    def foreign(self) -> list[Version]:
        """Registered versions that name no record."""
        rows = self._read("SELECT * FROM versions WHERE reason IS NOT NULL ORDER BY name, number")
        return [Version(*row) for row in rows]

    def held(self, name: str, number: int) -> Held:
        """A registered version with the aliases that it holds and has held."""
        query = "SELECT alias, now FROM holdings WHERE name = ? AND number = ?"
        return _held(name, number, self._read(query, name, number))

    def ancestors(self, digest: str) -> Graph:
        """A model and all that it descends from, as far as records tell."""
        return self._graph(self._digests(ANCESTORS, [digest]))

    def ancestry(self, digests: Iterable[str]) -> set[str]:
        """Records of models and of all that they descend from."""
        return set(self._digests(ANCESTORS, digests))

    def descendants(self, digests: Iterable[str]) -> set[str]:
        """Records of models and of all that descends from them."""
        return set(self._digests(DESCENDANTS, digests))

    def parents(self, digests: Collection[str]) -> set[str]:
        """Records that others name as what they were made from."""
        query = "SELECT DISTINCT parent FROM edges WHERE child IN (SELECT value FROM json_each(?))"
        return set(self._digests(query, digests))

    def of_data(self, digest: str) -> set[str]:
        """Records of what was made from a data version, by any of its four digests."""
        where = " OR ".join(f"{column} = ?" for column in DATA_COLUMNS)
        query = f"SELECT sha256 FROM records WHERE {where}"  # noqa: S608 - our own names
        return {row[0] for row in self._read(query, *[digest] * len(DATA_COLUMNS))}

    def of_manifests(self, manifests: Collection[str]) -> set[str]:
        """Records of what was made from data with one of these row manifests."""
        query = "SELECT sha256 FROM records WHERE manifest IN (SELECT value FROM json_each(?))"
        return set(self._digests(query, manifests))

    def reports_of(self, manifests: Collection[str]) -> set[str]:
        """Records of reports, not models, on data with one of these row manifests."""
        query = """
            SELECT sha256 FROM records
            WHERE NOT is_model AND manifest IN (SELECT value FROM json_each(?))
        """
        return set(self._digests(query, manifests))

    def of_code(self, commit: str) -> set[str]:
        """Records of what was made by a commit."""
        rows = self._read("SELECT sha256 FROM records WHERE code_commit = ?", commit)
        return {row[0] for row in rows}

    def of_model(self, model_id: str) -> set[str]:
        """Records of an MLflow model."""
        rows = self._read("SELECT sha256 FROM copies WHERE model_id = ?", model_id)
        return {row[0] for row in rows}

    def data_digest(self, prefix: str) -> str | None:
        """The one digest of a data version that starts so, or None.

        Raises:
            DataError: Several do, or it is too short.
        """
        return self._unique(prefix, [("records", column) for column in DATA_COLUMNS])

    def commit(self, prefix: str) -> str | None:
        """The one commit that starts so, or None; as `data_digest`."""
        return self._unique(prefix, [("records", "code_commit")])

    def record(self, prefix: str) -> str | None:
        """The one record that starts so, or None; as `data_digest`."""
        return self._unique(prefix, [("records", "sha256"), ("copies", "sha256")])

    def _unique(self, prefix: str, columns: Sequence[tuple[str, str]]) -> str | None:
        _refuse_short(prefix)
        found: set[str] = set()
        for table, column in columns:
            query = f"SELECT DISTINCT {column} FROM {table} WHERE {column} BETWEEN ? AND ? LIMIT 3"  # noqa: S608 - our own names
            found |= {row[0] for row in self._read(query, prefix, f"{prefix}~")}
        if len(found) > 1 and prefix not in found:
            raise DataError(
                f"'{prefix}' is ambiguous: {', '.join(sorted(found))}; give more digits"
            )
        return prefix if prefix in found else next(iter(found), None)

    def data(self) -> list[DataRef]:
        """Every data version that a record names."""
        query = "SELECT DISTINCT raw, prepared, manifest, data_content FROM records"
        return [
            DataRef(raw=raw, prepared=prepared, manifest=manifest, content=content)
            for raw, prepared, manifest, content in self._read(query)
        ]

    def document(self, digest: str) -> dict[str, Any]:
        """Parameters or an environment, by what `facts` says."""
        ((text,),) = self._read("SELECT json FROM documents WHERE sha256 = ?", digest)
        return json.loads(text)

    def artifacts(self, digests: Iterable[str]) -> dict[str, Artifact]:
        """What is known of models and reports, by their records, in that order."""
        wanted = list(digests)
        inside = "WHERE sha256 IN (SELECT value FROM json_each(?))"
        listed = json.dumps(wanted)
        names = [column[1] for column in self._read("PRAGMA table_info(records)")]
        rows = self._read(f"SELECT * FROM records {inside}", listed)  # noqa: S608 - our own words
        facts = {row[0]: dict(zip(names, row, strict=True)) for row in rows}
        copies: dict[str, list[tuple[Any, ...]]] = {}
        for row in self._read(
            f"SELECT sha256, run_id, model_id, stage, role, reason FROM copies {inside}",  # noqa: S608
            listed,
        ):
            copies.setdefault(row[0], []).append(row)
        roles = dict(
            self._read(
                "SELECT parent, role FROM edges WHERE parent IN (SELECT value FROM json_each(?))",
                json.dumps(list(set(wanted) - facts.keys() - copies.keys())),
            )
        )
        versions = self._held_by(listed)
        return {
            digest: _artifact(
                digest,
                facts.get(digest, {}),
                copies.get(digest, []),
                roles.get(digest, ""),
                versions.get(digest, []),
            )
            for digest in wanted
        }

    def _held_by(self, listed: str) -> dict[str, list[Held]]:
        query = """
            SELECT versions.sha256, versions.name, versions.number, holdings.alias, holdings.now
            FROM versions LEFT JOIN holdings
            ON holdings.name = versions.name AND holdings.number = versions.number
            WHERE versions.sha256 IN (SELECT value FROM json_each(?))
            ORDER BY versions.name, versions.number
        """
        aliases: dict[tuple[str, str, int], list[tuple[str, int]]] = {}
        for digest, name, number, alias, now in self._read(query, listed):
            known = aliases.setdefault((digest, name, number), [])
            if alias is not None:
                known.append((alias, now))
        found: dict[str, list[Held]] = {}
        for (digest, name, number), known in aliases.items():
            found.setdefault(digest, []).append(_held(name, number, known))
        return found

    def _graph(self, digests: list[str]) -> Graph:
        query = """
            SELECT child, role, parent FROM edges
            WHERE child IN (SELECT value FROM json_each(?)) ORDER BY child, role, parent
        """
        edges = [Edge(*row) for row in self._read(query, json.dumps(digests))]
        return Graph(self.artifacts(digests), tuple(edges))

    def _digests(self, query: str, digests: Iterable[str]) -> list[str]:
        return [row[0] for row in self._read(query, json.dumps(list(digests)))]


def _add(connection: sqlite3.Connection, copy: Copy) -> None:
    model_id = copy.model_id or ""
    # Tried again, it may be found to be another model's than its tags said.
    connection.execute("DELETE FROM copies WHERE run_id = ? AND reason IS NOT NULL", (copy.run_id,))
    connection.execute(
        "INSERT OR REPLACE INTO copies VALUES (?, ?, ?, ?, ?, ?)",
        (copy.run_id, model_id, copy.digest, copy.stage, copy.role, copy.reason),
    )
    if copy.record is None:
        return
    record, data, code = copy.record, copy.record.data, copy.record.code
    texts = [_text(value) for value in (record.parameters, record.environment)]
    parameters, environment = (hashlib.sha256(text.encode()).hexdigest() for text in texts)
    connection.executemany(
        "INSERT OR IGNORE INTO documents VALUES (?, ?)",
        zip((parameters, environment), texts, strict=True),
    )
    row = (
        copy.digest,
        record.stage,
        record.role,
        copy.model_id is not None,
        record.content,
        *(data.raw, data.prepared, data.manifest, data.content),
        *(code.commit, code.digest, code.clean),
        *(parameters, environment, _text(record.metrics)),
    )
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT OR REPLACE INTO records VALUES ({marks})", row)  # noqa: S608
    connection.executemany(
        "INSERT OR REPLACE INTO edges VALUES (?, ?, ?, ?)",
        [(copy.digest, one.role, one.record, one.model_id or "") for one in record.parents],
    )


def _text(value: dict[str, Any]) -> str:
    """Equal values as equal text; names nothing outside the index, so speed decides."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _artifact(
    digest: str,
    facts: dict[str, Any],
    copies: list[tuple[Any, ...]],
    role: str,
    versions: list[Held],
) -> Artifact:
    *_, stage, said, reason = copies[0] if copies else ("", role, "no record of it is stored")
    models = tuple(sorted({row[2] for row in copies} - {""}))
    return Artifact(
        digest=digest,
        stage=facts.get("stage", stage),
        role=facts.get("role", said),
        is_model=bool(facts["is_model"]) if facts else bool(models) or not copies,
        state="known" if facts else "unknown" if copies else "missing",
        reason=None if facts else reason,
        run_ids=tuple(sorted({row[1] for row in copies} - {""})),
        model_ids=models,
        versions=tuple(versions),
        facts=facts,
    )


def _held(name: str, number: int, aliases: Iterable[tuple[Any, ...]]) -> Held:
    known = sorted(aliases)
    now = tuple(alias for alias, is_now in known if is_now)
    return Held(name, number, now, tuple(sorted({alias for alias, _ in known})))


def _refuse_short(prefix: str) -> None:
    if not PREFIX.fullmatch(prefix):
        raise DataError(
            f"'{prefix}' is no digest; expected at least {FEWEST_DIGITS} of its hex digits"
        )
