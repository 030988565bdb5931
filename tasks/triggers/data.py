"""Data: the raw data changed, or enough rows wait to be taken in."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.triggers import ARRIVED, Answer, Signals, Trigger

DIGITS = 12


class Data(Trigger):
    """`data/` is not what the last retraining used.

    Data that was imported (`dvc import-url`) is fetched again where its source changed.

    Attributes:
        arrived: So many new rows in the incoming folder are a reason, too; null leaves that folder
            alone.
    """

    name: Literal["data"] = "data"
    arrived: Annotated[int, Field(ge=1)] | None = None

    def look(self, signals: Signals) -> Answer:
        """See `Trigger.look`."""
        now, before = signals.data(), signals.before()
        if before is None:
            return self.fires("nothing was ever trained on data/", now)
        if now != before.data:
            then = before.data[:DIGITS] or "never known"
            return self.fires(f"data/ changed: it was {then}, it is {now[:DIGITS]}", now)
        unchanged = f"data/ is what the last retraining used ({now[:DIGITS]})"
        return self.rests(unchanged) if self.arrived is None else self._waiting(signals, unchanged)

    def _waiting(self, signals: Signals, unchanged: str) -> Answer:
        found = signals.arrived()
        if found.rows < (self.arrived or 0):
            return self.rests(f"{unchanged}; {found.rows} new rows wait, {self.arrived} are enough")
        sentence = f"{found.rows} new rows arrived ({self.arrived} are enough)"
        return self.fires(sentence, ARRIVED + found.about, incoming_rows=found.rows)
