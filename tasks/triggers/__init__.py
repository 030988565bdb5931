"""Triggers: why a retraining starts."""

from abc import abstractmethod
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks.drawers import Drawer
from tasks.reasons import Reason
from tasks.sections import Section

ARRIVED = "arrived:"


class Answer(BaseModel):
    """What a trigger found.

    Attributes:
        trigger: Its name.
        sentence: Why a retraining should start, or why not, for people.
        reason: What to start it with; None where it is not time for one.
        failed: Whether the trigger could not look; the sentence says what stood in the way.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    trigger: str
    sentence: str
    reason: Reason | None = None
    failed: bool = False


@dataclass(frozen=True)
class Before:
    """The last retraining that ended well.

    Attributes:
        started: When it began, in UTC.
        data: Digest of the raw data that it used.
        code: Digest of the code that it used.
        sections: Digest of each section of params.yaml that decides what is trained, by name.
    """

    started: datetime
    data: str
    code: str
    sections: dict[str, str]


@dataclass(frozen=True)
class Arrived:
    """The rows that wait in the incoming folder.

    Attributes:
        rows: How many of them the champion's data does not hold.
        about: Digest of all that wait and their labels.
    """

    rows: int
    about: str


@dataclass(frozen=True)
class Sample:
    """Some rows, to be compared with others.

    Attributes:
        inputs: Encoded rows, (N, …).
        columns: Cells by column, (N,): numbers with NaN for an empty cell, or texts with an empty
            one; None where the rows are no table.
        texts: The rows as texts, where they are texts.
    """

    inputs: NDArray[np.generic]
    columns: dict[str, NDArray[np.generic]] | None = None
    texts: list[str] | None = None

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Compared:
    """Rows that arrived, beside those that the champion learned from.

    Attributes:
        training: The champion's training rows.
        arrived: Rows of the incoming folder that the champion's data does not hold.
        held_out: The champion's class probabilities of rows that it did not learn from, (M, C): of
            training rows it is surer than of any others.
        answers: Its class probabilities of the rows in `arrived`, (N, C).
        classes: Its class names.
    """

    training: Sample
    arrived: Sample
    held_out: NDArray[np.float32]
    answers: NDArray[np.float32]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Late:
    """Labels that came after the champion had learned.

    Attributes:
        right: How many of the rows the champion gets right.
        rows: How many rows there are; none of them showed it a label.
        about: Digest of the rows and their labels.
        accuracy: The champion's recorded accuracy on its test rows.
        low: Lower end of that figure's recorded interval.
    """

    right: int
    rows: int
    about: str
    accuracy: float
    low: float


class Signals(Protocol):
    """All that triggers look at; each fact is found when it is asked for.

    Each may raise a StillmarkError that says in one line why it cannot be found.

    Attributes:
        now: The time, in UTC.
        watched_since: When the project was first looked at, in UTC; never later than now.
    """

    now: datetime
    watched_since: datetime

    def before(self) -> Before | None:
        """The last retraining that ended well, or None."""
        ...

    def data(self) -> str:
        """Digest of the raw data as it is now."""
        ...

    def code(self) -> str:
        """Digest of the code as it is now."""
        ...

    def sections(self) -> dict[str, str]:
        """As `Before.sections`, of params.yaml as it is now."""
        ...

    def champion(self) -> int | None:
        """Version number of the champion, or None where there is none."""
        ...

    def arrived(self) -> Arrived:
        """The rows that wait."""
        ...

    def late(self) -> Late:
        """The labels that came late; there is a champion."""
        ...

    def compared(self, most: int, seed: int) -> Compared:
        """At most so many rows of each kind, drawn at random; there is a champion."""
        ...


class Trigger(Section):
    """Contract of a trigger.

    An answer is a function of the signals and the trigger's parameters alone.

    Attributes:
        asks_champion: Whether it asks about the champion and the rows that arrived. The answer then
            follows from these, and is kept until they change.
    """

    asks_champion: ClassVar[bool] = False

    @abstractmethod
    def look(self, signals: Signals) -> Answer:
        """Finds out whether it is time for a retraining, and says why or why not.

        Raises:
            StillmarkError: Something that it looks at is missing or cannot be read.
        """

    @property
    def title(self) -> str:
        """Its name, as params.yaml has it."""
        return str(self.plain()["name"])

    def rests(self, sentence: str) -> Answer:
        """The answer that nothing has to be done."""
        return Answer(trigger=self.title, sentence=sentence)

    def fires(self, sentence: str, about: str, *, name: str = "", **figures: float) -> Answer:
        """The answer that it is time.

        Args:
            sentence: Why.
            about: Digest of what was looked at.
            name: Of the reason, where it is not the trigger's own.
            **figures: What was measured.
        """
        trigger = name or self.title
        reason = Reason(trigger=trigger, sentence=sentence, figures=figures, about=about)
        return Answer(trigger=self.title, sentence=sentence, reason=reason)


TRIGGERS = Drawer("tasks.triggers", Trigger)
