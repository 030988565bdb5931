"""Membership: what the model gives away about the rows that it learned from."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.gates import Evidence, Gate, Verdict


class Membership(Gate):
    """An attacker who sees the challenger's answers hardly tells its training rows from others.

    The area under the ROC curve of the stronger of two attacks (Yeom et al. 2018, arXiv:1709.01604,
    on rows with shown labels; Salem et al. 2019, arXiv:1806.01246, on the others), as measured by
    the evaluation. The figure as measured decides; its 95% interval (DeLong 1988) is told. A
    version that was never attacked does not pass.

    Attributes:
        largest: Largest area that passes; 0.5 is guessing.
    """

    name: Literal["membership"] = "membership"
    largest: Annotated[float, Field(ge=0.5, le=1)] = 0.6

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`."""
        found = evidence.challenger.membership
        if found is None:
            why = (
                "no membership-inference attack on this version is on record; `stillmark retrain` "
                "evaluates it again"
            )
            return Verdict(gate=self.name, passed=False, sentence=why, figures={})
        auc, low, high = found
        why = (
            f"an attacker tells training rows from others with an AUC of {auc:.3f} (95% interval "
            f"{low:.3f} to {high:.3f}; asked for: at most {self.largest:.3f}, 0.5 is guessing)"
        )
        figures = {"auc": auc, "low": low, "high": high}
        return Verdict(gate=self.name, passed=auc <= self.largest, sentence=why, figures=figures)
