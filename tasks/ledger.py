"""The ledger: every promotion and rollback, append-only and hash-chained, in SQLite or PostgreSQL.

It is the truth about who promoted what; an alias in the registry is only a projection of it. Beside
it stand two tables of working notes: intents, opened before a promotion gathers its evidence and
closed once the alias was read back, and requests, which wait for a person's verdict.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args
from uuid import uuid4

import sqlalchemy
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Column, Connection, Integer, MetaData, Select, Table, select, update
from sqlalchemy.exc import IntegrityError

from tasks.database import Database
from tasks.entries import (
    Action,
    Entry,
    Finding,
    Hex,
    Name,
    Sha256,
    Text,
    Time,
    Witness,
    flaw_of,
    judge,
    stamp,
)
from tasks.errors import ConflictError, LedgerError

Verdict = Literal["approved", "rejected", "stale"]
Ending = Literal["done", "abandoned"]
Kind = TypeVar("Kind", bound=BaseModel)

# No letter or digit that is taken for another when read aloud or copied by hand.
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
PATIENCE_S = 20.0
DONE = {"promoted": "was promoted", "rolled_back": "was rolled back to"}


def _now() -> datetime:
    return datetime.now(UTC)


def _code() -> str:
    drawn = [secrets.choice(LETTERS) for _ in range(8)]
    return f"{''.join(drawn[:4])}-{''.join(drawn[4:])}"


class Intent(BaseModel):
    """A note, written ahead, of a promotion or rollback that somebody has begun.

    Attributes:
        id: What the entry will name; fresh by default.
        model: Name of the registered model.
        alias: The alias that is to move.
        expected: Number of the entry that stood last when it was begun; 0 where there was none.
        version: Version that is to hold the alias.
        action: What is to be done.
        actor: Who does it.
        reason: Why.
        started: When (UTC, RFC 3339); now by default.
        state: `open`; `done` once the alias was read back; `abandoned` where it came to nothing.
        outcome: How it ended, in words.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    id: Hex = Field(default_factory=lambda: uuid4().hex)
    model: Name
    alias: Name
    expected: Annotated[int, Field(ge=0)]
    version: Annotated[int, Field(ge=1)]
    action: Action
    actor: Name
    reason: Text
    started: Time = Field(default_factory=lambda: stamp(_now()))
    state: Literal["open", "done", "abandoned"] = "open"
    outcome: Text | None = None


class Request(BaseModel):
    """A question to a person: may exactly this challenger become the holder of the alias?

    Attributes:
        id: What the person types to answer; fresh by default.
        model: Name of the registered model.
        alias: The alias that would move.
        version: The challenger.
        content: sha256 over the challenger's files.
        expected: Number of the entry that stood last when it was asked; 0 where there was none.
        head: Digest of that entry, or None.
        evidence: sha256 over the kept evidence files, or None.
        evidence_run: MLflow run where they lie, or None.
        actor: Who asks.
        asked: When (UTC, RFC 3339); now by default.
        state: `open` until it is settled.
        reason: Why it was settled so.
        settled_by: Who settled it.
        settled: When (UTC, RFC 3339).
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    id: Name = Field(default_factory=_code)
    model: Name
    alias: Name
    version: Annotated[int, Field(ge=1)]
    content: Sha256
    expected: Annotated[int, Field(ge=0)]
    head: Sha256 | None
    evidence: Sha256 | None = None
    evidence_run: Name | None = None
    actor: Name
    asked: Time = Field(default_factory=lambda: stamp(_now()))
    state: Literal["open", "approved", "rejected", "stale"] = "open"
    reason: Text | None = None
    settled_by: Name | None = None
    settled: Time | None = None


METADATA = MetaData()


def _table(name: str, model: type[BaseModel], key: set[str], unique: str = "") -> Table:
    """A table with a model's fields as columns, so that the two cannot differ."""
    columns: list[Column[Any]] = []
    for field, info in model.model_fields.items():
        kinds = get_args(info.annotation) or (info.annotation,)
        kind = Integer() if int in kinds else sqlalchemy.Text()
        nullable, primary = NoneType in kinds, field in key
        columns.append(
            Column(field, kind, primary_key=primary, nullable=nullable, unique=field == unique)
        )
    return Table(name, METADATA, *columns)


ENTRIES = _table("stillmark_ledger", Entry, {"model", "alias", "sequence"}, unique="intent")
INTENTS = _table("stillmark_intents", Intent, {"id"})
REQUESTS = _table("stillmark_requests", Request, {"id"})

# SQLite's REPLACE deletes without asking a trigger on DELETE, so one on INSERT has to look for it.
TRIGGERS = {
    "sqlite": (
        """
        CREATE TRIGGER stillmark_no_update BEFORE UPDATE ON stillmark_ledger
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END
        """,
        """
        CREATE TRIGGER stillmark_no_delete BEFORE DELETE ON stillmark_ledger
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END
        """,
        """
        CREATE TRIGGER stillmark_no_replace BEFORE INSERT ON stillmark_ledger
        WHEN EXISTS (
            SELECT 1 FROM stillmark_ledger WHERE intent = NEW.intent
            OR (model = NEW.model AND alias = NEW.alias AND sequence = NEW.sequence)
        )
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END
        """,
    ),
    "postgresql": (
        """
        CREATE OR REPLACE FUNCTION stillmark_refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$
        """,
        """
        CREATE TRIGGER stillmark_no_change BEFORE UPDATE OR DELETE OR TRUNCATE
        ON stillmark_ledger FOR EACH STATEMENT EXECUTE FUNCTION stillmark_refuse()
        """,
    ),
}


class Ledger:
    """One ledger; its tables are made where they are missing.

    May be kept, forked and used by several threads.

    Args:
        url: `sqlite:///<path>` or `postgresql://<user>:<password>@<host>/<database>`.
        now: The clock.
        patience: Seconds to wait for another process's write.

    Raises:
        LedgerError: The address is of no use, or the database does not answer.
    """

    def __init__(
        self, url: str, now: Callable[[], datetime] = _now, patience: float = PATIENCE_S
    ) -> None:
        self._now = now
        self._database = Database(url, patience)
        self._database.make(METADATA, TRIGGERS)

    @property
    def address(self) -> str:
        """Where it is, without a password."""
        return self._database.address

    def head(self, model: str, alias: str) -> Entry | None:
        """The last entry of an alias, or None.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        with self._database.reading() as connection:
            return _head(connection, model, alias)

    def entries(self, model: str | None = None, alias: str | None = None) -> list[Entry]:
        """Entries by model, alias and number; all of them, or one model's, or one alias's.

        Raises:
            LedgerError: The ledger cannot be read, or a row in it is no entry.
        """
        with self._database.reading() as connection:
            rows = connection.execute(_selection(model, alias)).mappings().all()
        return [_read(Entry, row) for row in rows]

    def entry_of(self, intent: str) -> Entry | None:
        """The entry that an intent led to, or None where it has not come so far.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        with self._database.reading() as connection:
            return _entry_of(connection, intent)

    def open(self, intent: Intent) -> Intent:
        """Notes an intent before anything is done for it; returns it.

        Raises:
            LedgerError: It is noted already, or the ledger cannot be written.
        """
        try:
            with self._database.writing() as connection:
                connection.execute(INTENTS.insert().values(intent.model_dump()))
        except IntegrityError:
            raise LedgerError(f"intent {intent.id} is noted already: make a new one") from None
        return intent

    def open_intents(self, model: str | None = None) -> list[Intent]:
        """Intents that were never closed, oldest first: begun just now, or cut off by a kill.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        wanted = select(INTENTS).where(INTENTS.c.state == "open")
        wanted = wanted.order_by(INTENTS.c.started, INTENTS.c.id)
        if model is not None:
            wanted = wanted.where(INTENTS.c.model == model)
        with self._database.reading() as connection:
            return [_read(Intent, row) for row in connection.execute(wanted).mappings()]

    def close(self, intent: str, outcome: str, state: Ending = "done") -> None:
        """Closes an intent by its id; closing it again in the same way changes nothing.

        Raises:
            ConflictError: Somebody closed it the other way.
            LedgerError: There is no such intent, or the ledger cannot be written.
        """
        with self._database.writing() as connection:
            noted = _intent(connection, intent)
            if noted.state == "open":
                values = {"state": state, "outcome": outcome}
                connection.execute(update(INTENTS).where(INTENTS.c.id == intent).values(values))
            elif noted.state != state:
                raise ConflictError(_closed(noted))

    def append(
        self,
        intent: str,
        *,
        content: str,
        record: str,
        reason: str | None = None,
        evidence: str | None = None,
        evidence_run: str | None = None,
    ) -> Entry:
        """Appends what an open intent announced, if the ledger still ends where it began.

        Asking again for the same intent returns its entry, so that a run which was killed between
        this call and the next may simply be repeated.

        Args:
            intent: Its id; it says which alias, version and action, and which entry it expects to
                find last.
            content: sha256 over the version's files.
            record: sha256 of the version's lineage record.
            reason: What was found; the intent's reason by default.
            evidence: sha256 over the kept evidence files.
            evidence_run: MLflow run where they lie.

        Raises:
            ConflictError: Somebody else's entry came first, or the intent was closed.
            LedgerError: There is no such intent, this machine's clock is behind the ledger, the
                last row is not what was written, or the ledger cannot be written.
        """
        facts = {
            "content": content,
            "record": record,
            "reason": reason,
            "evidence": evidence,
            "evidence_run": evidence_run,
        }
        try:
            with self._database.writing() as connection:
                return self._append(connection, intent, facts)
        except IntegrityError:
            # Somebody wrote without taking our lock; the unique key held.
            with self._database.reading() as connection:
                noted = _intent(connection, intent)
                raise _conflict(connection, noted) from None

    def check(self, model: str | None = None, witnesses: Iterable[Witness] = ()) -> list[Finding]:
        """Recomputes every digest and link; see `tasks.entries.judge` for what that can show.

        Args:
            model: Only this model's rows; all by default.
            witnesses: Digests copied elsewhere when their entries were appended.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        with self._database.reading() as connection:
            rows = [dict(row) for row in connection.execute(_selection(model)).mappings()]
        heard = (seen for seen in witnesses if model in (None, seen.model))
        return judge(rows, heard)

    def ask(self, request: Request) -> Request:
        """Files a request for a person's verdict; returns it.

        Raises:
            LedgerError: It is filed already, or the ledger cannot be written.
        """
        try:
            with self._database.writing() as connection:
                connection.execute(REQUESTS.insert().values(request.model_dump()))
        except IntegrityError:
            raise LedgerError(f"request {request.id} is filed already: make a new one") from None
        return request

    def request(self, request: str) -> Request:
        """A request by its id.

        Raises:
            LedgerError: There is none, or the ledger cannot be read.
        """
        with self._database.reading() as connection:
            return _request(connection, request)

    def requests(self, model: str | None = None, state: str | None = None) -> list[Request]:
        """Requests, oldest first; all of them, or one model's, or those in one state.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        wanted = select(REQUESTS).order_by(REQUESTS.c.asked, REQUESTS.c.id)
        if model is not None:
            wanted = wanted.where(REQUESTS.c.model == model)
        if state is not None:
            wanted = wanted.where(REQUESTS.c.state == state)
        with self._database.reading() as connection:
            return [_read(Request, row) for row in connection.execute(wanted).mappings()]

    def settle(self, request: str, verdict: Verdict, actor: str, reason: str) -> Request:
        """Settles an open request; of several who try, exactly one does.

        Raises:
            ConflictError: It is settled already; the message says by whom and how.
            LedgerError: There is no such request, or the ledger cannot be written.
        """
        with self._database.writing() as connection:
            asked = _request(connection, request)
            if asked.state != "open":
                raise ConflictError(
                    f"request {request} was {asked.state} by {asked.settled_by} at {asked.settled} "
                    f"({asked.reason}): nothing is left to settle"
                )
            answer = {"state": verdict, "settled_by": actor, "reason": reason}
            answer["settled"] = stamp(self._now())
            settled = _valid(Request, asked.model_dump() | answer)
            changed = update(REQUESTS).where(REQUESTS.c.id == request)
            connection.execute(changed.values(settled.model_dump()))
        return settled

    def _append(self, connection: Connection, intent: str, facts: dict[str, Any]) -> Entry:
        noted = _intent(connection, intent)
        entry = _entry_of(connection, intent)
        if entry is not None:
            return _same(entry, facts)
        if noted.state != "open":
            raise ConflictError(_closed(noted))
        head = _head(connection, noted.model, noted.alias)
        if (head.sequence if head else 0) != noted.expected:
            raise _conflict(connection, noted)
        entry = _sealed(noted, head, facts, self._time(head))
        connection.execute(ENTRIES.insert().values(entry.model_dump()))
        return entry

    def _time(self, head: Entry | None) -> str:
        """The clock's time, after the lock is held: an earlier winner is earlier."""
        time = stamp(self._now())
        if head is not None and time < head.time:
            raise LedgerError(
                f"this machine's clock says {time}, but the ledger's last row of {head.model}@"
                f"{head.alias} is from {head.time}: set the clock right and run again"
            )
        return time


def _selection(model: str | None = None, alias: str | None = None) -> Select[Any]:
    wanted = select(ENTRIES).order_by(ENTRIES.c.model, ENTRIES.c.alias, ENTRIES.c.sequence)
    if model is not None:
        wanted = wanted.where(ENTRIES.c.model == model)
    return wanted if alias is None else wanted.where(ENTRIES.c.alias == alias)


def _head(connection: Connection, model: str, alias: str) -> Entry | None:
    last = _selection(model, alias).order_by(None).order_by(ENTRIES.c.sequence.desc()).limit(1)
    row = connection.execute(last).mappings().first()
    return None if row is None else _read(Entry, row)


def _entry_of(connection: Connection, intent: str) -> Entry | None:
    wanted = select(ENTRIES).where(ENTRIES.c.intent == intent)
    row = connection.execute(wanted).mappings().first()
    return None if row is None else _read(Entry, row)


def _intent(connection: Connection, intent: str) -> Intent:
    row = connection.execute(select(INTENTS).where(INTENTS.c.id == intent)).mappings().first()
    if row is None:
        raise LedgerError(f"no intent {intent} is noted: open one first")
    return _read(Intent, row)


def _request(connection: Connection, request: str) -> Request:
    row = connection.execute(select(REQUESTS).where(REQUESTS.c.id == request)).mappings().first()
    if row is None:
        raise LedgerError(
            f"there is no request {request}: `stillmark history MODEL` lists those that wait"
        )
    return _read(Request, row)


def _read(kind: type[Kind], row: Mapping[Any, Any]) -> Kind:
    """A stored row as what it must be."""
    try:
        return kind.model_validate(dict(row))
    except ValidationError as error:
        name = kind.__name__.lower()
        raise LedgerError(
            f"an {name} of {row['model']}@{row['alias']} cannot be read ({flaw_of(error)}): "
            "the database was changed by hand; check the ledger"
        ) from None


def _valid(kind: type[Kind], fields: Mapping[str, Any]) -> Kind:
    """What a caller wants to write, if it is of its kind."""
    try:
        return kind(**fields)
    except ValidationError as error:
        name = kind.__name__.lower()
        raise LedgerError(f"this {name} cannot be written: {flaw_of(error)}") from None


def _sealed(intent: Intent, head: Entry | None, facts: Mapping[str, Any], time: str) -> Entry:
    """The entry that follows the head."""
    if head is not None and not head.is_whole:
        raise LedgerError(
            f"row {head.sequence} of {head.model}@{head.alias} was changed after it was written, "
            "and nothing is appended to such a row: check the ledger"
        )
    announced = intent.model_dump(include={"model", "alias", "version", "action", "actor"})
    fields = {
        **announced,
        "sequence": intent.expected + 1,
        "previous_version": head.version if head else None,
        "previous": head.digest if head else None,
        "intent": intent.id,
        "time": time,
        **facts,
        "reason": intent.reason if facts["reason"] is None else facts["reason"],
    }
    try:
        return Entry.sealed(**fields)
    except ValidationError as error:
        raise LedgerError(f"this entry cannot be written: {flaw_of(error)}") from None


def _same(entry: Entry, facts: Mapping[str, Any]) -> Entry:
    """An intent's entry, asked for again; what was written must be what is asked for now."""
    for name in ("content", "record"):
        if getattr(entry, name) != facts[name]:
            raise LedgerError(
                f"intent {entry.intent} was appended already, as row {entry.sequence} with "
                f"{name} {getattr(entry, name)}, not {facts[name]}: open a new intent"
            )
    return entry


def _closed(intent: Intent) -> str:
    return (
        f"intent {intent.id} for {intent.model}@{intent.alias} version {intent.version} was closed "
        f"as {intent.state} ({intent.outcome}): open a new one"
    )


def _conflict(connection: Connection, intent: Intent) -> LedgerError:
    """Who came first; or that nobody did, and rows are gone."""
    names = f"{intent.model}@{intent.alias}"
    rows = _selection(intent.model, intent.alias).where(ENTRIES.c.sequence > intent.expected)
    row = connection.execute(rows).mappings().first()
    if row is None:
        return LedgerError(
            f"row {intent.expected} of {names} was there when this was begun and is gone: "
            "check the ledger"
        )
    first = _read(Entry, row)
    return ConflictError(
        f"{first.actor} came first: {names} version {first.version} {DONE[first.action]} at "
        f"{first.time} (row {first.sequence}); judge again against the new holder"
    )
