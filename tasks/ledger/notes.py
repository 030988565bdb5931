"""The ledger's working notes: what somebody has begun, and what waits for a person."""

import secrets
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from tasks.ledger.entries import Action, Hex, Name, Sha256, Text, Time, stamp

# No letter or digit that is taken for another when read aloud or copied by hand.
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"


def clock() -> datetime:
    """The time now, UTC."""
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
    started: Time = Field(default_factory=lambda: stamp(clock()))
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
    asked: Time = Field(default_factory=lambda: stamp(clock()))
    state: Literal["open", "approved", "rejected", "stale"] = "open"
    reason: Text | None = None
    settled_by: Name | None = None
    settled: Time | None = None
