"""Cron: at times of the day, the week or the month."""

from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError
from pydantic import field_validator
from pydantic_core import PydanticCustomError

from tasks.sections import hint
from tasks.triggers import Answer, Signals, Trigger

FIELDS = 5
LONGEST_CHANGE = timedelta(hours=3)
EXAMPLE = "for example '30 2 * * 1-5', which is 02:30 from Monday to Friday"


class Cron(Trigger):
    """A scheduled moment has passed since the last retraining began.

    However many were missed, they count once. Where the clock changes for summer, the rules are
    those of Debian's cron: a time of day that a change leaves out comes right after it, one that a
    change brings twice comes once, and expressions that begin every hour or minute follow the real
    hours.

    Attributes:
        expression: Minute, hour, day of the month, month and day of the week.
        timezone: IANA's name of the zone that the expression means.
    """

    name: Literal["cron"] = "cron"
    expression: str
    timezone: str = "UTC"

    @field_validator("expression")
    @classmethod
    def _check_expression(cls, expression: str) -> str:
        count = len(expression.split())
        if count != FIELDS:
            raise _wrong(f"it has {count} fields, expected five")
        try:
            next(CronSim(expression, datetime(2001, 1, 1, tzinfo=UTC)))
        except CronSimError as error:
            raise _wrong(str(error).replace("Bad", "wrong is the field")) from None
        except StopIteration:
            raise _wrong("no such day ever comes") from None
        return expression

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            close = hint(timezone, sorted(available_timezones())).partition(" (known")[0]
            what = f"no time zone of that name{close}"
            raise _wrong(what, "for example 'Europe/Berlin'") from None
        return timezone

    def look(self, signals: Signals) -> Answer:
        """See `Trigger.look`."""
        now, since, note = signals.now, signals.watched_since, ""
        before = signals.before()
        if before is not None:
            since = before.started
        if since > now:
            ahead = (since - now).total_seconds() / 3600
            note = (
                f"; the last retraining is dated {ahead:.1f} hours in the future: set the clock "
                "right"
            )
            since = signals.watched_since
        due = self.last_moment(now)
        if due is None or due <= since:
            return self.rests(f"the next moment of '{self.expression}' is {self._next(now)}{note}")
        sentence = f"'{self.expression}' ({self.timezone}) was due at {self._local(due)}{note}"
        late = (now - due).total_seconds()
        return self.fires(sentence, f"cron:{due.isoformat()}", late_seconds=late)

    def last_moment(self, now: datetime) -> datetime | None:
        """The newest scheduled moment up to now, in UTC; None where there was none in 50 years."""
        # By the clock on the wall a moment of an hour that comes twice may lie ahead, though it has
        # passed; and one that a change moved may lie behind, though it is yet to come.
        local = (now + LONGEST_CHANGE).astimezone(ZoneInfo(self.timezone))
        earlier = (found.astimezone(UTC) for found in CronSim(self.expression, local, reverse=True))
        return next((moment for moment in earlier if moment <= now), None)

    def _next(self, now: datetime) -> str:
        found = next(CronSim(self.expression, now.astimezone(ZoneInfo(self.timezone))), None)
        return "never" if found is None else self._local(found)

    def _local(self, moment: datetime) -> str:
        return moment.astimezone(ZoneInfo(self.timezone)).isoformat(" ", "minutes")


def _wrong(what: str, cure: str = EXAMPLE) -> PydanticCustomError:
    return PydanticCustomError("cron", "{what}; {cure}", {"what": what, "cure": cure})
