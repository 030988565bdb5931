"""Accuracy, paired on the same test rows."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from tasks.gates import Evidence, Gate, Verdict
from tasks.statistics import paired, share


class Quality(Gate):
    """The challenger is better than the champion, by a margin and not by chance.

    The first version ever has no champion to beat; it has to be better than always naming the most
    frequent class.

    Attributes:
        margin: Smallest gain in accuracy that counts.
        alpha: Largest p-value of the one-sided exact McNemar test.
    """

    name: Literal["quality"] = "quality"
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`."""
        right = evidence.challenger == evidence.labels
        if evidence.champion is None:
            return self._judge_first(right, evidence)
        found = paired(right, evidence.champion == evidence.labels)
        passed = found.gain > 0 and found.gain >= self.margin and found.p_value <= self.alpha
        why = (
            f"{'better' if passed else 'not shown to be better'} than the champion on the same "
            f"{len(right)} test rows: accuracy {found.gain:+.2%} (asked for: {self.margin:.2%} and "
            f"p at most {self.alpha:g}), {found.only_first} rows right that it gets wrong, "
            f"{found.only_second} the other way, p = {found.p_value:.3g}"
        )
        figures = {
            "gain": found.gain,
            "only_challenger": found.only_first,
            "only_champion": found.only_second,
            "p_value": found.p_value,
        }
        return Verdict(gate=self.name, passed=passed, sentence=why, figures=figures)

    def _judge_first(self, right: np.ndarray, evidence: Evidence) -> Verdict:
        _, counts = np.unique(evidence.labels, return_counts=True)
        floor, found = float(counts.max() / len(right)), share(right)
        passed = found.low > floor
        why = (
            f"first version: accuracy {found.value:.2%} (95% interval {found.low:.2%} to "
            f"{found.high:.2%}) is {'above' if passed else 'not clearly above'} the floor "
            f"{floor:.2%}, always naming the most frequent class"
        )
        figures = {"accuracy": found.value, "low": found.low, "high": found.high, "floor": floor}
        return Verdict(gate=self.name, passed=passed, sentence=why, figures=figures)
