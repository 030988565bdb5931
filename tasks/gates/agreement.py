"""Agreement: how much users would see change, or how well the teacher was learned from."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.gates import Evidence, Gate, Verdict
from tasks.statistics import share


class Agreement(Gate):
    """Challenger and champion, or teacher, answer alike on most unlabelled rows.

    The share as measured decides; its 95% interval (Wilson 1927) is told. Without unlabelled rows
    nothing can be said, and the first version has no champion to agree with: both pass, and say so.
    A version whose lineage names no teacher does not agree with one.

    Attributes:
        at_least: Smallest share of unlabelled rows on which both name the same class.
        against: Whom the challenger has to agree with: the champion, or the teacher that it was
            distilled from (the first, where there are several).
    """

    name: Literal["agreement"] = "agreement"
    at_least: Annotated[float, Field(gt=0, le=1)]
    against: Literal["champion", "teacher"] = "champion"

    @property
    def asks_teacher(self) -> bool:
        """See `Gate.asks_teacher`."""
        return self.against == "teacher"

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`."""
        if not self.asks_teacher and evidence.champion is None:
            return self._silent("first version: there is no champion to agree with")
        if not len(evidence.pool):
            return self._silent(
                "nothing can be said: there is no unlabelled row to compare answers on"
            )
        champion = None if evidence.champion is None else evidence.champion.pool_labels
        other = evidence.teacher if self.asks_teacher else champion
        if other is None:
            why = "its teacher was not asked: its lineage names none; promote a distilled model"
            return Verdict(gate=self.name, passed=False, sentence=why, figures={})
        found = share(evidence.challenger.pool_labels == other)
        why = (
            f"same answer as the {self.against} on {found.value:.2%} of {found.rows} unlabelled "
            f"rows (95% interval {found.low:.2%} to {found.high:.2%}; asked for: at least "
            f"{self.at_least:.2%})"
        )
        figures = {
            "agreement": found.value,
            "low": found.low,
            "high": found.high,
            "rows": found.rows,
        }
        passed = found.value >= self.at_least
        return Verdict(gate=self.name, passed=passed, sentence=why, figures=figures)

    def _silent(self, why: str) -> Verdict:
        return Verdict(gate=self.name, passed=True, sentence=why, figures={})
