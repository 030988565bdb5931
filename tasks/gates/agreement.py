"""Agreement: how much users would see change."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.gates import Evidence, Gate, Verdict
from tasks.statistics import share


class Agreement(Gate):
    """Challenger and champion answer alike on most unlabelled rows.

    The share as measured decides; its 95% interval (Wilson 1927) is told. The first version has
    nothing to agree with, and without unlabelled rows nothing can be said: both pass, and say so.

    Attributes:
        at_least: Smallest share of unlabelled rows on which both name the same class.
    """

    name: Literal["agreement"] = "agreement"
    at_least: Annotated[float, Field(gt=0, le=1)]

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`."""
        if evidence.champion is None:
            return self._silent("first version: there is no champion to agree with")
        if not len(evidence.pool):
            return self._silent(
                "nothing can be said: there is no unlabelled row to compare answers on"
            )
        found = share(evidence.challenger.pool_labels == evidence.champion.pool_labels)
        why = (
            f"same answer as the champion on {found.value:.2%} of {found.rows} unlabelled rows "
            f"(95% interval {found.low:.2%} to {found.high:.2%}; asked for: at least "
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
