"""Calibration: a probability of 90% is right nine times in ten."""

from typing import Annotated, Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray
from pydantic import Field

from tasks.gates import Evidence, Gate, Side, Verdict
from tasks.statistics import CONFIDENCE, sums_again

TEMPERATURES = np.geomspace(0.05, 20, 121)  # a grid: every machine finds the same
SMALLEST = 1e-12
UNIT = 2.0**30  # probabilities are counted in whole parts of this size, which add up exactly


def gaps(
    confidence: NDArray[np.float32], right: NDArray[np.bool_], bins: int
) -> NDArray[np.float64]:
    """What each row adds to the gap of each bin: right or not, minus its confidence.

    Bins hold equally many rows (equal mass), by rank of confidence; equal confidences share a bin,
    so that the order of rows means nothing.

    Args:
        confidence: Probability of the named class, (N,).
        right: Whether it is the true one, (N,).
        bins: Number of bins.

    Returns:
        (N, bins), in whole parts of 1 / `UNIT`.
    """
    ranks = np.searchsorted(np.sort(confidence), confidence)
    found = np.zeros((len(confidence), bins))
    columns = ranks * bins // len(confidence)
    found[np.arange(len(confidence)), columns] = np.rint((right - confidence.astype(float)) * UNIT)
    return found


def tempered(probabilities: NDArray[np.float32], labels: NDArray[np.intp]) -> NDArray[np.float64]:
    """Probabilities p^(1/T), normalised (temperature scaling, Guo et al. 2017, arXiv:1706.04599).

    Each half of the rows (every other one) is scaled by the temperature that gives the other half
    the smallest mean of -log p of the true class, so that no row chooses its own.

    Args:
        probabilities: (N, classes), N at least 2.
        labels: Number of each row's true class, (N,).

    Returns:
        (N, classes).
    """
    logs = np.log(np.maximum(probabilities.astype(float), SMALLEST))
    found = np.empty_like(logs)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        other = slice(1 - (half.start or 0), None, 2)
        losses = [_loss(logs[other] / one, labels[other]) for one in TEMPERATURES]
        scaled = logs[half] / TEMPERATURES[int(np.argmin(losses))]
        found[half] = scipy.special.softmax(scaled, axis=1)
    return found


def _loss(logits: NDArray[np.float64], labels: NDArray[np.intp]) -> float:
    right = logits[np.arange(len(labels)), labels]
    total: NDArray[np.float64] = np.asarray(scipy.special.logsumexp(logits, axis=1))
    return float((total - right).mean())


def calibration_error(sums: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """Expected calibration error, sum over bins of |right - confidence| / rows.

    Naeini et al. 2015 (AAAI 29), with bins of equal mass as Nguyen and O'Connor 2015
    (arXiv:1508.05154) take them.

    Args:
        sums: Sums of `gaps` over rows, (…, bins).
        rows: How many.
    """
    return np.abs(sums).sum(axis=-1) / (UNIT * rows)


class Calibration(Gate):
    """The challenger's probabilities say how often it is right, as well as the champion's do.

    The expected calibration error of the most probable class fails where it is above `largest`, as
    measured, or where it is shown to be above the champion's by more than `margin`: the whole 95%
    interval of the difference (paired percentile bootstrap, Efron 1979, the bins being those of the
    test rows) lies above the margin. What is not shown does not fail, as with few rows per bin the
    error itself is mostly noise. Drawing rows again adds noise where the error is near zero, so the
    interval is then too wide, never too narrow.

    The first version has no champion: only `largest` holds for it.

    Attributes:
        bins: Bins of equal mass.
        largest: Largest calibration error, as measured on the test rows; None: any.
        margin: Largest growth against the champion.
        temperature_scaling: Judges the error that is left after temperature scaling, of both; for
            models whose probabilities are scaled where they are used.
    """

    name: Literal["calibration"] = "calibration"
    bins: Annotated[int, Field(ge=1)] = 15
    largest: Annotated[float, Field(ge=0, le=1)] | None = None
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.02
    temperature_scaling: bool = False

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`."""
        broken = _broken(evidence.challenger)
        if broken:
            why = f"the probabilities of {broken} test rows are not finite: there is no error"
            return self._verdict(why, {"broken_rows": broken}, passed=False)
        columns = self._gaps(evidence, evidence.challenger)
        error = float(calibration_error(columns.sum(axis=0), len(columns)))
        fits = self.largest is None or error <= self.largest
        limit = "" if self.largest is None else f" (asked for: at most {self.largest:.4f})"
        what = "calibration error" + " after temperature scaling" * self.temperature_scaling
        start, figures = f"{what} {error:.4f}{limit}", {"ece_challenger": error}
        if evidence.champion is None or _broken(evidence.champion):
            whose = "first version" if evidence.champion is None else "its probabilities are broken"
            why = f"{start}; there is no champion's error to compare with: {whose}"
            return self._verdict(why, figures, passed=fits)
        before = self._gaps(evidence, evidence.champion)
        champion = float(calibration_error(before.sum(axis=0), len(before)))
        low, high = self._interval(columns, before)
        worse = low > self.margin
        why = (
            f"{start}, the champion's is {champion:.4f}: {'' if worse else 'not '}shown to grow by "
            f"more than {self.margin:.4f}, {error - champion:+.4f} (95% interval {low:+.4f} to "
            f"{high:+.4f}) on {len(columns)} test rows in {self.bins} bins"
        )
        figures |= {"ece_champion": champion, "low": low, "high": high}
        return self._verdict(why, figures, passed=fits and not worse)

    def _verdict(self, why: str, figures: dict[str, float], *, passed: bool) -> Verdict:
        return Verdict(gate=self.name, passed=passed, sentence=why, figures=figures)

    def _gaps(self, evidence: Evidence, side: Side) -> NDArray[np.float64]:
        probabilities: NDArray[Any] = side.probabilities
        if self.temperature_scaling and len(evidence.rows) > 1:
            names = np.asarray(evidence.classes)
            order = np.argsort(names)
            labels = order[np.searchsorted(names, evidence.labels, sorter=order)]
            probabilities = tempered(side.probabilities, labels)
        confidence = probabilities.max(axis=1).astype(np.float32)
        return gaps(confidence, evidence.right(side), self.bins)

    def _interval(
        self, first: NDArray[np.float64], second: NDArray[np.float64]
    ) -> tuple[float, float]:
        """Ends of the 95% interval of the first one's error minus the second's."""
        sums = sums_again(np.hstack([first, second])).reshape(-1, 2, self.bins)
        errors = calibration_error(sums, len(first))
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(errors[:, 0] - errors[:, 1], [tail, 1 - tail])
        return float(low), float(high)


def _broken(side: Side) -> int:
    return int((~np.isfinite(side.probabilities)).any(axis=1).sum())
