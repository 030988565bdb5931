"""The index's file: its tables, and what happens to a file that is torn or of another schema."""

import sqlite3
from pathlib import Path

from tasks.errors import SetupError

SCHEMA_VERSION = 1
PATIENCE_SECONDS = 60.0

# `records` holds what could be read, `copies` what lies in the registry, readable or not: equal
# inputs give an equal record, so one record may have several copies.
SCHEMA = """
CREATE TABLE records (
    sha256 TEXT PRIMARY KEY, stage TEXT NOT NULL, role TEXT NOT NULL, is_model INTEGER NOT NULL,
    content TEXT NOT NULL, raw TEXT NOT NULL, prepared TEXT NOT NULL, manifest TEXT NOT NULL,
    data_content TEXT NOT NULL, code_commit TEXT, code_digest TEXT NOT NULL,
    code_clean INTEGER NOT NULL, parameters TEXT NOT NULL, environment TEXT NOT NULL,
    metrics TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX records_raw ON records (raw);
CREATE INDEX records_prepared ON records (prepared);
CREATE INDEX records_manifest ON records (manifest);
CREATE INDEX records_data_content ON records (data_content);
CREATE INDEX records_code_commit ON records (code_commit);
CREATE TABLE copies (
    run_id TEXT NOT NULL, model_id TEXT NOT NULL, sha256 TEXT NOT NULL,
    stage TEXT NOT NULL, role TEXT NOT NULL, reason TEXT, PRIMARY KEY (run_id, model_id)
) WITHOUT ROWID;
CREATE INDEX copies_sha256 ON copies (sha256);
CREATE INDEX copies_model_id ON copies (model_id);
CREATE INDEX copies_unreadable ON copies (reason) WHERE reason IS NOT NULL;
CREATE TABLE edges (
    child TEXT NOT NULL, role TEXT NOT NULL, parent TEXT NOT NULL, model_id TEXT NOT NULL,
    PRIMARY KEY (child, role, parent)
) WITHOUT ROWID;
CREATE INDEX edges_parent ON edges (parent, child);
CREATE TABLE documents (sha256 TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE versions (
    name TEXT NOT NULL, number INTEGER NOT NULL, sha256 TEXT NOT NULL, reason TEXT,
    PRIMARY KEY (name, number)
) WITHOUT ROWID;
CREATE INDEX versions_sha256 ON versions (sha256);
CREATE TABLE holdings (
    name TEXT NOT NULL, number INTEGER NOT NULL, alias TEXT NOT NULL, now INTEGER NOT NULL,
    PRIMARY KEY (name, number, alias, now)
) WITHOUT ROWID;
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
TABLES = ("records", "copies", "edges", "documents", "versions", "holdings", "notes")


def opened(path: Path) -> sqlite3.Connection:
    """The index's database; empty where there was none, or none that is whole and of this schema.

    Raises:
        SetupError: It cannot be written, or somebody holds it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _usable(path) or _new(path)
    except (sqlite3.OperationalError, OSError) as error:
        raise SetupError(stuck(path, error)) from None


def stuck(path: Path, error: Exception) -> str:
    """What to say where the file cannot be used."""
    return (
        f"the lineage index {path} cannot be used ({error}); end the process that holds it, make "
        "room, or delete the file: it is made again"
    )


def _usable(path: Path) -> sqlite3.Connection | None:
    if not path.exists():
        return None
    connection = sqlite3.connect(path, timeout=PATIENCE_SECONDS)
    try:
        _set_up(connection)
        ((version,),) = connection.execute("PRAGMA user_version")
        ((state,),) = connection.execute("PRAGMA quick_check(1)")
    except sqlite3.OperationalError:
        connection.close()
        raise
    except sqlite3.DatabaseError:
        version, state = 0, "torn"
    if (version, state) == (SCHEMA_VERSION, "ok"):
        return connection
    connection.close()
    return None


def _new(path: Path) -> sqlite3.Connection:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    connection = sqlite3.connect(path, timeout=PATIENCE_SECONDS)
    _set_up(connection)
    connection.executescript(
        f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )
    return connection


def _set_up(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
