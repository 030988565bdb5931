"""The ledger's tables, and the triggers that keep its rows as they were written."""

from types import NoneType
from typing import Any, get_args

import sqlalchemy
from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, Table

from tasks.ledger.entries import Entry
from tasks.ledger.notes import Intent, Request

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
