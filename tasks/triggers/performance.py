"""Performance: labels that arrived late show the champion below what was recorded of it."""

from typing import Annotated, ClassVar, Literal

import scipy
from pydantic import Field

from tasks.triggers import ARRIVED, Answer, Signals, Trigger


class Performance(Trigger):
    """The champion's accuracy on labels that arrived late is below its recorded interval.

    Counted are rows that showed the champion no label while it learned and have one now. The exact
    binomial test, one-sided, of "its accuracy is at least the lower end of the 95% interval that
    was recorded with it" has to reject.

    Attributes:
        alpha: Chance of a false alarm, each time other labels are looked at, were its accuracy that
            lower end.
        fewest_labels: So many late labels have to be there before they count.
    """

    asks_champion: ClassVar[bool] = True

    name: Literal["performance"] = "performance"
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    fewest_labels: Annotated[int, Field(ge=1)] = 50

    def look(self, signals: Signals) -> Answer:
        """See `Trigger.look`."""
        if signals.champion() is None:
            return self.rests("there is no champion yet whose accuracy could be checked")
        late = signals.late()
        if late.rows < self.fewest_labels:
            return self.rests(f"{late.rows} labels arrived late, {self.fewest_labels} count")
        p_value = float(
            scipy.stats.binomtest(late.right, late.rows, late.low, alternative="less").pvalue
        )
        found = late.right / late.rows
        said = (
            f"the champion gets {found:.2%} of {late.rows} late labels right, recorded are "
            f"{late.accuracy:.2%} (at least {late.low:.2%}; p = {p_value:.2g}, alarm at "
            f"{self.alpha:g})"
        )
        if p_value > self.alpha:
            return self.rests(said)
        return self.fires(
            said,
            ARRIVED + late.about,
            late_labels=late.rows,
            accuracy=found,
            recorded_accuracy=late.accuracy,
            recorded_low=late.low,
            p_value=p_value,
        )
