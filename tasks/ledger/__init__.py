"""The ledger: every promotion and rollback, append-only and hash-chained, in SQLite or PostgreSQL.

It is the truth about who promoted what; an alias in the registry is only a projection of it. Beside
it stand two tables of working notes: intents, opened before a promotion gathers its evidence and
closed once the alias was read back, and requests, which wait for a person's verdict.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import Connection, select, update
from sqlalchemy.exc import IntegrityError

from tasks.database import Database
from tasks.errors import ConflictError, LedgerError
from tasks.ledger import reading
from tasks.ledger.entries import Action, Entry, Finding, Witness, flaw_of, judge, stamp
from tasks.ledger.notes import Intent, Request, clock
from tasks.ledger.tables import ENTRIES, INTENTS, METADATA, REQUESTS, TRIGGERS

__all__ = ["Action", "Entry", "Finding", "Intent", "Ledger", "Request", "Witness"]

Verdict = Literal["approved", "rejected", "stale"]
Ending = Literal["done", "abandoned"]

PATIENCE_S = 20.0
DONE = {"promoted": "was promoted", "rolled_back": "was rolled back to"}


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
        self, url: str, now: Callable[[], datetime] = clock, patience: float = PATIENCE_S
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
            return reading.head(connection, model, alias)

    def entries(self, model: str | None = None, alias: str | None = None) -> list[Entry]:
        """Entries by model, alias and number; all of them, or one model's, or one alias's.

        Raises:
            LedgerError: The ledger cannot be read, or a row in it is no entry.
        """
        with self._database.reading() as connection:
            rows = connection.execute(reading.selection(model, alias)).mappings().all()
        return [reading.read(Entry, row) for row in rows]

    def entry_of(self, intent: str) -> Entry | None:
        """The entry that an intent led to, or None where it has not come so far.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        with self._database.reading() as connection:
            return reading.entry_of(connection, intent)

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
            return [reading.read(Intent, row) for row in connection.execute(wanted).mappings()]

    def close(self, intent: str, outcome: str, state: Ending = "done") -> None:
        """Closes an intent by its id; closing it again in the same way changes nothing.

        Raises:
            ConflictError: Somebody closed it the other way.
            LedgerError: There is no such intent, or the ledger cannot be written.
        """
        with self._database.writing() as connection:
            noted = reading.intent(connection, intent)
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
                noted = reading.intent(connection, intent)
                raise _conflict(connection, noted) from None

    def check(self, model: str | None = None, witnesses: Iterable[Witness] = ()) -> list[Finding]:
        """Recomputes every digest and link; see `entries.judge` for what that can show.

        Args:
            model: Only this model's rows; all by default.
            witnesses: Digests copied elsewhere when their entries were appended.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        with self._database.reading() as connection:
            rows = [dict(row) for row in connection.execute(reading.selection(model)).mappings()]
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
            return reading.request(connection, request)

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
            return [reading.read(Request, row) for row in connection.execute(wanted).mappings()]

    def settle(self, request: str, verdict: Verdict, actor: str, reason: str) -> Request:
        """Settles an open request; of several who try, exactly one does.

        Raises:
            ConflictError: It is settled already; the message says by whom and how.
            LedgerError: There is no such request, or the ledger cannot be written.
        """
        with self._database.writing() as connection:
            asked = reading.request(connection, request)
            if asked.state != "open":
                raise ConflictError(
                    f"request {request} was {asked.state} by {asked.settled_by} at {asked.settled} "
                    f"({asked.reason}): nothing is left to settle"
                )
            answer = {"state": verdict, "settled_by": actor, "reason": reason}
            answer["settled"] = stamp(self._now())
            settled = reading.valid(Request, asked.model_dump() | answer)
            changed = update(REQUESTS).where(REQUESTS.c.id == request)
            connection.execute(changed.values(settled.model_dump()))
        return settled

    def _append(self, connection: Connection, intent: str, facts: dict[str, Any]) -> Entry:
        noted = reading.intent(connection, intent)
        entry = reading.entry_of(connection, intent)
        if entry is not None:
            return _same(entry, facts)
        if noted.state != "open":
            raise ConflictError(_closed(noted))
        head = reading.head(connection, noted.model, noted.alias)
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
    rows = reading.selection(intent.model, intent.alias).where(ENTRIES.c.sequence > intent.expected)
    row = connection.execute(rows).mappings().first()
    if row is None:
        return LedgerError(
            f"row {intent.expected} of {names} was there when this was begun and is gone: "
            "check the ledger"
        )
    first = reading.read(Entry, row)
    return ConflictError(
        f"{first.actor} came first: {names} version {first.version} {DONE[first.action]} at "
        f"{first.time} (row {first.sequence}); judge again against the new holder"
    )
