"""Slices: a better mean hides no class or source that got worse."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.errors import ParamsError
from tasks.gates import Evidence, Gate, Verdict
from tasks.sections import hint
from tasks.statistics import Paired, holm

NAMED_AT_MOST = 10


@dataclass(frozen=True)
class Slice:
    """Some of the test rows.

    Attributes:
        name: As sentences call it.
        right: How many of them the challenger gets right.
        pair: Challenger and champion on them; their gain is 0 where there is no champion.
    """

    name: str
    right: int
    pair: Paired

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.pair.rows

    @property
    def accuracy(self) -> float:
        """Share of them that the challenger gets right."""
        return self.right / self.rows

    @property
    def drop(self) -> float:
        """Accuracy of the champion minus the challenger's."""
        return 0 - self.pair.gain

    @property
    def sentence(self) -> str:
        """Its name and both accuracies."""
        return (
            f"{self.name}: {self.accuracy:.2%} of {self.rows} rows right, the champion "
            f"{self.accuracy + self.drop:.2%} ({0 - self.drop:+.2%})"
        )


@dataclass(frozen=True)
class Partition:
    """All test rows by one column.

    Attributes:
        noun: The column, for names.
        values: What occurs in it, or might.
        codes: Position of each row's value, (N,).
    """

    noun: str
    values: tuple[str, ...]
    codes: NDArray[np.intp]

    def slices(self, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> list[Slice]:
        """Counts what two versions get right (N,) in each slice."""
        masks = (np.ones_like(first), first, first & ~second, second & ~first)
        size = len(self.values)
        counts = np.stack([np.bincount(self.codes[mask], minlength=size) for mask in masks], 1)
        return [
            Slice(f"{self.noun} '{value}'", right, Paired(one, other, rows))
            for value, (rows, right, one, other) in zip(self.values, counts.tolist(), strict=True)
        ]


class Slices(Gate):
    """No class, and no slice by a further column, gets worse by more than a margin.

    A slice fails where its drop exceeds the margin and chance is ruled out: the one-sided test of
    "the drop is at most the margin" (estimated exact p-value, see `Paired.worse_by_more`), adjusted
    for all slices (Holm 1979), has p at most `alpha`. Slices with too few rows for that are named
    in the verdict. Where every slice is too small, nothing is shown and the gate does not pass.
    The first version has no champion; it passes, and the verdict names its worst slice.

    Attributes:
        columns: Further columns of the row manifest to slice by, for example `source`.
        margin: Largest drop in accuracy that a slice may show.
        alpha: Chance of failing a challenger whose every true drop is within the margin.
        fewest_rows: Slices with fewer are not judged.
    """

    name: Literal["slices"] = "slices"
    columns: tuple[str, ...] = ()
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    fewest_rows: Annotated[int, Field(ge=1)] = 20

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`.

        Raises:
            ParamsError: The row manifest has no such column.
        """
        right = evidence.right(evidence.challenger)
        before = right if evidence.champion is None else evidence.right(evidence.champion)
        parts = [_classes(evidence), *(self._partition(evidence, name) for name in self.columns)]
        slices = [found for part in parts for found in part.slices(right, before)]
        small = [found for found in slices if found.rows < self.fewest_rows]
        large = [found for found in slices if found.rows >= self.fewest_rows]
        if evidence.champion is None:
            return self._judge_first(large, small)
        if not large:
            return self._nothing_judged(small)
        return self._judge(large, small)

    def _partition(self, evidence: Evidence, column: str) -> Partition:
        if column not in evidence.columns:
            known = list(evidence.columns)
            reason = hint(column, known) or "; it has no further columns"
            raise ParamsError(f"gates: slices: the row manifest has no column '{column}'{reason}")
        values, codes = np.unique(evidence.columns[column], return_inverse=True)
        return Partition(column, tuple(values.tolist()), codes)

    def _judge(self, large: list[Slice], small: list[Slice]) -> Verdict:
        tests = np.asarray([found.pair.worse_by_more(self.margin) for found in large])
        judged = list(zip(large, holm(tests).tolist(), strict=True))
        failing = [found for found in judged if self._fails(*found)]
        worst, p_value = max(failing or judged, key=lambda found: found[0].drop)
        start = f"{len(failing)} of {len(large)} slices" if failing else "no slice"
        why = (
            f"{start} shown to fall by more than {self.margin:.2%} (p at most {self.alpha:g} after "
            f"Holm's adjustment for {len(large)}); worst is {worst.sentence}, p = {p_value:.3g}"
            f"{_too_small(small)}"
        )
        figures = {
            "slices": len(large),
            "too_small": len(small),
            "failing": len(failing),
            "worst_drop": worst.drop,
            "worst_rows": worst.rows,
            "worst_accuracy": worst.accuracy,
            "worst_p_value": p_value,
        }
        return Verdict(gate=self.name, passed=not failing, sentence=why, figures=figures)

    def _fails(self, found: Slice, p_value: float) -> bool:
        return found.drop > self.margin and p_value <= self.alpha

    def _judge_first(self, large: list[Slice], small: list[Slice]) -> Verdict:
        some = large or [found for found in small if found.rows]
        worst = min(some, key=lambda found: found.accuracy)
        why = (
            "first version: there is no champion to compare slices with; worst is "
            f"{worst.name}: {worst.accuracy:.2%} of {worst.rows} rows right{_too_small(small)}"
        )
        figures = {
            "slices": len(large),
            "too_small": len(small),
            "worst_rows": worst.rows,
            "worst_accuracy": worst.accuracy,
        }
        return Verdict(gate=self.name, passed=True, sentence=why, figures=figures)

    def _nothing_judged(self, small: list[Slice]) -> Verdict:
        why = (
            f"no slice has the {self.fewest_rows} rows that fewest_rows asks for, so nothing is "
            f"shown: label more rows, or lower it{_too_small(small)}"
        )
        figures: dict[str, float] = {"slices": 0, "too_small": len(small)}
        return Verdict(gate=self.name, passed=False, sentence=why, figures=figures)


def _classes(evidence: Evidence) -> Partition:
    number = {name: at for at, name in enumerate(evidence.classes)}
    codes = np.asarray([number[label] for label in evidence.labels.tolist()])
    return Partition("class", evidence.classes, codes)


def _too_small(slices: list[Slice]) -> str:
    if not slices:
        return ""
    named = ", ".join(f"{found.name} ({found.rows})" for found in slices[:NAMED_AT_MOST])
    more = len(slices) - NAMED_AT_MOST
    return f"; too small to judge: {named}{f' and {more} more' if more > 0 else ''}"
