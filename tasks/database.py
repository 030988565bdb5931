"""SQLite and PostgreSQL for what must not be lost: one writer at a time, errors in one line."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.pool import NullPool

from tasks.errors import BusyError, LedgerError, SetupError

BACKENDS = ("sqlite", "postgresql")
DRIVER = "psycopg2"
LOCK_KEY = 0x5354494C4C  # any number that nobody else asks this PostgreSQL server for

# A server that no longer hears of a machine frees its locks after about a minute.
CONNECT_SECONDS = 10
KEEPALIVE = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "connect_timeout": CONNECT_SECONDS,
}
SLICE_SECONDS = 1.0  # the driver lets no signal through while it waits
NAME_SESSION = text("SELECT set_config('application_name', :name, false)")
HOLDER = text(
    "SELECT a.application_name, a.client_addr FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
    " AND (l.classid::bigint << 32 | l.objid::bigint) = :key"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
LONGEST_NAME = 63

BUSY = "another process has held it for {patience:g} s: let that one finish, or end it"
# Words of a driver's message, and what to do where they stand in it.
CURES = (
    ("locked", BUSY),
    ("lock timeout", BUSY),
    ("not a database", "restore that file from a copy, or correct the address"),
    ("malformed", "restore that file from a copy"),
    ("unable to open", "make its folder readable and writable for this user"),
    ("readonly", "make the file and its folder writable for this user"),
    ("disk", "free some space on its disk"),
    ("password", "correct the user and the password in its address"),
    ("does not exist", "correct the name in its address, or create it"),
    ("no such", "something else lies at this address: correct it"),
    ("permission denied", "grant this user what it lacks"),
)
OTHERWISE = "see that the database runs and can be reached"


def reach(what: str, url: str) -> None:
    """Opens a connection to a PostgreSQL database and closes it; any other address is passed over.

    Libraries try for minutes, whatever the matter is, and then show the address as it is.

    Args:
        what: Whose database it is, for people.
        url: `postgresql://…`, with the driver of whoever is going to use it.

    Raises:
        SetupError: It cannot be used; says why, without a password.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        return
    if parsed.get_backend_name() != "postgresql":
        return
    try:
        wait = {"connect_timeout": CONNECT_SECONDS}
        engine = create_engine(parsed, poolclass=NullPool, connect_args=wait)
        engine.connect().close()
    except ImportError as error:
        raise SetupError(
            f"{what} at {_address(parsed)} needs {error.name}, which is not installed"
        ) from None
    except SQLAlchemyError as error:
        raise SetupError(trouble(what, parsed, error)) from None


def trouble(what: str, url: URL, error: Exception, patience: float = CONNECT_SECONDS) -> str:
    """What stands in the way of a database, and what to do, in one line and without its password.

    Args:
        what: Whose database it is, for people.
        url: Its address.
        error: What its driver said.
        patience: How long another process's write was waited for.
    """
    cause = error.orig if isinstance(error, DBAPIError) else error
    said = " ".join(str(cause).split()) or type(cause).__name__
    if secret := _secret(url):
        said = said.replace(secret, "***")
    cure = next((cure for words, cure in CURES if words in said), OTHERWISE)
    return (
        f"{what} at {_address(url)} cannot be used ({said}): "
        f"{cure.format(patience=patience)}, then run again"
    )


class Database:
    """The database at an address.

    May be kept, forked and used by several threads; a connection that died is made anew.

    Args:
        url: `sqlite:///<path>` or `postgresql://<user>:<password>@<host>/<database>`.
        patience: Seconds to wait for another process's write.

    Attributes:
        address: Where it is, without a password.

    Raises:
        LedgerError: The address is of no use, or the driver for it is not installed.
    """

    def __init__(self, url: str, patience: float) -> None:
        parsed = _parse(url)
        self.address = _address(parsed)
        self._patience, self._url = patience, parsed
        self._engine, self._process = self._open(parsed), os.getpid()

    def make(self, metadata: MetaData, triggers: Mapping[str, Sequence[str]]) -> None:
        """Makes tables and triggers together, or neither; one process does and others wait.

        Args:
            metadata: The tables.
            triggers: Statements that follow them, by the kind of database.

        Raises:
            LedgerError: The database does not answer or does not let this user make tables.
        """
        with self.reading() as connection:
            if _is_made(connection, metadata):
                return
        with self.writing() as connection:
            if not _is_made(connection, metadata):
                metadata.create_all(connection)
                for statement in triggers[connection.dialect.name]:
                    connection.exec_driver_sql(statement)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for single questions.

        Raises:
            LedgerError: The database does not answer, or not as it should.
        """
        with self._clear_errors(), self._own_engine().connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that no other one overlaps; on an error it leaves nothing behind.

        Raises:
            LedgerError: The database does not answer, or another writer holds it for too long.
            IntegrityError: A unique key or a trigger refused a row.
        """
        with self._clear_errors(), self._own_engine().begin() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                wait_ms = round(self._patience * 1000)
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {wait_ms}")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")
            yield connection

    @contextmanager
    def reserved(
        self, key: int, name: str, holder: str, wait_seconds: float = 0.0
    ) -> Iterator[None]:
        """Holds a lock of PostgreSQL's own for the block; it ends with this connection.

        Args:
            key: Its number, below 2**63.
            name: What is locked, for people.
            holder: Who holds it, for whoever has to wait; 63 characters of it are kept.
            wait_seconds: How long to wait.

        Raises:
            BusyError: Another one holds it; says who.
            LedgerError: The database does not answer.
        """
        until = time.monotonic() + wait_seconds
        with ExitStack() as stack:
            with self._clear_errors():
                connection = stack.enter_context(self._own_engine().connect())
                connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.detach()  # held for hours: nobody is to wait for it in the pool
                named = {"name": holder[:LONGEST_NAME]}
                connection.execute(NAME_SESSION, named)
                _wait_for(connection, key, name, until)
            yield

    def _open(self, url: URL) -> Engine:
        if url.get_backend_name() == "sqlite":
            wait = {"timeout": self._patience}
            engine = create_engine(url, poolclass=NullPool, connect_args=wait)
            event.listen(engine, "connect", _prepare_sqlite)
            return engine
        try:
            return create_engine(
                url,
                pool_size=1,
                pool_pre_ping=True,
                isolation_level="READ COMMITTED",
                connect_args=KEEPALIVE,
            )
        except ImportError as error:
            raise LedgerError(
                f"the ledger at {self.address} needs {error.name}, which is not installed: "
                f"run pip install {DRIVER}-binary"
            ) from None

    def _own_engine(self) -> Engine:
        """After a fork, two processes that talk over one connection garble each other's words."""
        if self._process != os.getpid():
            self._engine.dispose(close=False)
            self._process = os.getpid()
        return self._engine

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            said = trouble("the ledger", self._url, error, self._patience)
            raise LedgerError(said) from None


def _wait_for(connection: Connection, key: int, name: str, until: float) -> None:
    """Waits for an advisory lock, in slices."""
    wanted = {"key": key}
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), wanted).scalar():
        left = until - time.monotonic()
        if left <= 0:
            found = connection.execute(HOLDER, wanted).first()
            place = f", at {found[1]}" if found and found[1] else ""
            who = f" ({found[0]}{place})" if found else ""
            raise BusyError(
                f"another machine of the team retrains '{name}'; wait until it has ended{who}"
            )
        slice_ms = max(1, round(1000 * min(left, SLICE_SECONDS)))
        connection.exec_driver_sql(f"SET lock_timeout = {slice_ms}")
        try:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), wanted)
        except OperationalError as error:
            if "lock timeout" not in str(error):
                raise
        else:
            return


def _parse(url: str) -> URL:
    """The address as SQLAlchemy knows it; a SQLite file's folder is made."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise LedgerError(
            "the ledger's address is no database address; expected sqlite:///<path> or "
            "postgresql://<user>:<password>@<host>/<database>"
        ) from None
    backend = parsed.get_backend_name()
    if backend not in BACKENDS:
        raise LedgerError(f"the ledger is kept in sqlite or postgresql, not in {backend}")
    if backend == "sqlite":
        _make_folder(parsed.database)
    elif parsed.drivername == backend:
        parsed = parsed.set(drivername=f"{backend}+{DRIVER}")
    return parsed


def _make_folder(database: str | None) -> None:
    if not database or database == ":memory:":
        raise LedgerError("the ledger's address names no file; expected sqlite:///<path>")
    folder = Path(database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(
            f"cannot make {folder} for the ledger ({error.strerror}): make it writable for this "
            "user, or correct the address"
        ) from None


def _address(url: URL) -> str:
    """What of an address may be shown: no password, wherever it stands."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    host = url.host or url.query.get("host") or "localhost"
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{host}{port}/{url.database or ''}"


def _secret(url: URL) -> str | None:
    secret = url.password or url.query.get("password")
    return str(secret) if secret else None


def _prepare_sqlite(connection: Any, _: object) -> None:  # noqa: ANN401 - DB-API has no type
    # The driver begins transactions by itself, too late and without the lock, unless told not to.
    connection.isolation_level = None
    # FULL may lose the last transaction with the power, and with it an alias's only witness.
    connection.execute("PRAGMA synchronous = EXTRA")


def _is_made(connection: Connection, metadata: MetaData) -> bool:
    return metadata.tables.keys() <= set(inspect(connection).get_table_names())
