"""Rows of the ledger's tables, as what they must be."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection, Select, select

from tasks.errors import LedgerError
from tasks.ledger.entries import Entry, flaw_of
from tasks.ledger.notes import Intent, Request
from tasks.ledger.tables import ENTRIES, INTENTS, REQUESTS

Kind = TypeVar("Kind", bound=BaseModel)


def selection(model: str | None = None, alias: str | None = None) -> Select[Any]:
    """Asks for entries by model, alias and number: all, or one model's, or one alias's."""
    wanted = select(ENTRIES).order_by(ENTRIES.c.model, ENTRIES.c.alias, ENTRIES.c.sequence)
    if model is not None:
        wanted = wanted.where(ENTRIES.c.model == model)
    return wanted if alias is None else wanted.where(ENTRIES.c.alias == alias)


def head(connection: Connection, model: str, alias: str) -> Entry | None:
    """The last entry of an alias, or None."""
    last = selection(model, alias).order_by(None).order_by(ENTRIES.c.sequence.desc()).limit(1)
    row = connection.execute(last).mappings().first()
    return None if row is None else read(Entry, row)


def entry_of(connection: Connection, intent_id: str) -> Entry | None:
    """The entry that an intent led to, or None."""
    wanted = select(ENTRIES).where(ENTRIES.c.intent == intent_id)
    row = connection.execute(wanted).mappings().first()
    return None if row is None else read(Entry, row)


def intent(connection: Connection, intent_id: str) -> Intent:
    """An intent by its id.

    Raises:
        LedgerError: There is none.
    """
    row = connection.execute(select(INTENTS).where(INTENTS.c.id == intent_id)).mappings().first()
    if row is None:
        raise LedgerError(f"no intent {intent_id} is noted: open one first")
    return read(Intent, row)


def request(connection: Connection, request_id: str) -> Request:
    """A request by its id.

    Raises:
        LedgerError: There is none.
    """
    found = select(REQUESTS).where(REQUESTS.c.id == request_id)
    row = connection.execute(found).mappings().first()
    if row is None:
        raise LedgerError(
            f"there is no request {request_id}: `stillmark history MODEL` lists those that wait"
        )
    return read(Request, row)


def read(kind: type[Kind], row: Mapping[Any, Any]) -> Kind:
    """A stored row as what it must be.

    Raises:
        LedgerError: It is not.
    """
    try:
        return kind.model_validate(dict(row))
    except ValidationError as error:
        name = kind.__name__.lower()
        raise LedgerError(
            f"an {name} of {row['model']}@{row['alias']} cannot be read ({flaw_of(error)}): "
            "the database was changed by hand; check the ledger"
        ) from None


def valid(kind: type[Kind], fields: Mapping[str, Any]) -> Kind:
    """What a caller wants to write, if it is of its kind.

    Raises:
        LedgerError: It is not.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        name = kind.__name__.lower()
        raise LedgerError(f"this {name} cannot be written: {flaw_of(error)}") from None
