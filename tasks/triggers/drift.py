"""Drift: rows that arrive are not like those that the champion learned from."""

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks import shifts
from tasks.shifts import Shift
from tasks.statistics import holm
from tasks.triggers import ARRIVED, Answer, Compared, Sample, Signals, Trigger

NAMED_AT_MOST = 5
FINENESS = 5


class Drift(Trigger):
    """Rows in the incoming folder differ from the champion's training rows, and not by chance.

    Tables are compared column by column: numbers by Kolmogorov and Smirnov's test, categories by
    chi-square, shares of empty cells by Fisher's test; and each by the population stability index.
    Images and texts are compared by one test on an embedding of both. What the champion answers
    (Rabanser et al. 2019, arXiv:1810.11953) is compared with its answers on rows held out from
    training: the classes it names and how sure it is.

    All p-values are adjusted for being several (Holm 1979), so that data that did not drift is
    called drifted with a chance of at most `alpha`, each time other rows are looked at.

    Attributes:
        test: On the embedding: `mmd`, or `classifier`, which finds small corners better.
        alpha: Chance of a false alarm.
        stability_index: Least index at which a column, or what the champion answers, counts as
            drifted; with many rows the tests find differences that do not matter.
        fewest_rows: So many rows have to wait before they are compared.
        most_rows: So many rows of each side are drawn at most.
        seed: Of the draw.
    """

    asks_champion: ClassVar[bool] = True

    name: Literal["drift"] = "drift"
    test: Literal["mmd", "classifier"] = "mmd"
    alpha: Annotated[float, Field(ge=0.001, lt=0.5)] = 0.01
    stability_index: Annotated[float, Field(ge=0)] = 0.1
    fewest_rows: Annotated[int, Field(ge=20)] = 50
    most_rows: Annotated[int, Field(ge=50, le=5000)] = 1000
    seed: int = 0

    def look(self, signals: Signals) -> Answer:
        """See `Trigger.look`."""
        if signals.champion() is None:
            return self.rests("there is no champion yet whose training rows could be compared")
        arrived = signals.arrived()
        if arrived.rows < self.fewest_rows:
            return self.rests(f"{arrived.rows} new rows wait, {self.fewest_rows} are compared")
        compared = signals.compared(self.most_rows, self.seed)
        if len(compared.arrived) < self.fewest_rows:
            return self.rests(f"of the rows drawn, {len(compared.arrived)} can be read")
        found = list(self.compare(compared))
        adjusted = holm(np.asarray([shift.p_value for shift in found])).tolist()
        drifted = [
            (shift, p_value)
            for shift, p_value in zip(found, adjusted, strict=True)
            if p_value <= self.alpha
            and (shift.index is None or shift.index >= self.stability_index)
        ]
        return self._answer(compared, arrived.about, len(found), drifted, min(adjusted))

    def compare(self, compared: Compared) -> Iterator[Shift]:
        """Every test that the rows allow."""
        training, arrived = compared.training, compared.arrived
        if training.columns is not None and arrived.columns is not None:
            yield from _by_column(training.columns, arrived.columns)
        else:
            yield self._embedded(training, arrived)
        if len(compared.held_out):
            yield from _answers(compared)

    def _embedded(self, training: Sample, arrived: Sample) -> Shift:
        if training.texts is not None and arrived.texts is not None:
            rows = shifts.embed_texts(training.texts, arrived.texts, seed=self.seed)
        else:
            rows = shifts.embed_arrays(training.inputs, arrived.inputs, seed=self.seed)
        if self.test == "classifier":
            area, p_value = shifts.classified(*rows, seed=self.seed)
            return Shift(f"rows (told apart with AUC {area:.3f})", p_value)
        # Three tests: so many permutations that the smallest p-value is well below alpha.
        count = math.ceil(3 * FINENESS / self.alpha) - 1
        size, p_value = shifts.discrepancy(*rows, permutations=count, seed=self.seed)
        return Shift(f"rows (MMD² {size:.3g})", p_value)

    def _answer(
        self,
        compared: Compared,
        about: str,
        tests: int,
        drifted: list[tuple[Shift, float]],
        least: float,
    ) -> Answer:
        sizes = f"{len(compared.arrived)} arrived and {len(compared.training)} training rows"
        if not drifted:
            return self.rests(
                f"no drift in {tests} tests on {sizes} (smallest adjusted p = {least:.3g}, alarm "
                f"at {self.alpha:g})"
            )
        drifted.sort(key=lambda found: found[1])
        named = "; ".join(_said(*found) for found in drifted[:NAMED_AT_MOST])
        more = f" and {len(drifted) - NAMED_AT_MOST} more" if len(drifted) > NAMED_AT_MOST else ""
        sentence = f"drift in {len(drifted)} of {tests} tests on {sizes}: {named}{more}"
        return self.fires(
            sentence,
            ARRIVED + about,
            incoming_rows=len(compared.arrived),
            tests=tests,
            drifted=len(drifted),
            p_value=least,
            stability_index=max((shift.index or 0.0 for shift, _ in drifted), default=0.0),
        )


def _said(shift: Shift, p_value: float) -> str:
    index = "" if shift.index is None else f"PSI {shift.index:.2f}, "
    return f"{shift.what}: {index}p = {p_value:.2g}"


def _by_column(
    training: dict[str, NDArray[np.generic]], arrived: dict[str, NDArray[np.generic]]
) -> Iterator[Shift]:
    for name, before in training.items():
        after = arrived[name]
        gaps = [_missing(values) for values in (before, after)]
        full = [values[~gap] for values, gap in zip((before, after), gaps, strict=True)]
        if all(len(values) for values in full):
            yield _cells(f"'{name}'", *full)
        if any(gap.any() for gap in gaps):
            counts = [np.bincount(gap, minlength=2) for gap in gaps]
            yield shifts.counted(f"empty cells of '{name}'", *counts)


def _cells(what: str, before: NDArray[np.generic], after: NDArray[np.generic]) -> Shift:
    if before.dtype.kind == "f":
        return shifts.numeric(what, before.astype(np.float64), after.astype(np.float64))
    return shifts.categorical(what, before.tolist(), after.tolist())


def _missing(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    return np.isnan(values.astype(np.float64)) if values.dtype.kind == "f" else values == ""


def _answers(compared: Compared) -> Iterator[Shift]:
    sides = (compared.held_out, compared.answers)
    count = len(compared.classes)
    named = [np.bincount(side.argmax(1), minlength=count) for side in sides]
    yield shifts.counted("classes that the champion names", *named)
    sure = [side.max(1).astype(np.float64) for side in sides]
    yield shifts.numeric("how sure the champion is", *sure)
