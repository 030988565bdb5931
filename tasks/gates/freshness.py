"""Freshness: a model of old data is not new."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.gates import Evidence, Gate, Verdict


class Freshness(Gate):
    """The newest data behind the challenger is at most so old.

    An age below zero fails too: a date in the future says that a clock is wrong, not that data is
    fresh.

    Attributes:
        days: Largest age in days.
    """

    name: Literal["freshness"] = "freshness"
    days: Annotated[float, Field(gt=0)]

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`."""
        age = evidence.data_age_days
        passed = 0 <= age <= self.days
        why = f"its data is {abs(age):.2f} days old (asked for: at most {self.days:g})"
        if age < 0:
            why = f"its data is dated {-age:.2f} days in the future: set the clock right"
        figures = {"data_age_days": age}
        return Verdict(gate=self.name, passed=passed, sentence=why, figures=figures)
