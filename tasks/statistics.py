"""Intervals and tests for shares of rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Share:
    """A share of rows with its interval.

    Attributes:
        value: The share, from 0 to 1.
        low: Lower end of the 95% interval (Wilson 1927).
        high: Upper end.
        rows: Number of rows.
    """

    value: float
    low: float
    high: float
    rows: int


def share(right: NDArray[np.bool_]) -> Share:
    """Share of true entries of (N,), N at least 1."""
    count = len(right)
    test = binomtest(int(right.sum()), count)
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Share(float(right.mean()), float(interval.low), float(interval.high), count)


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same rows.

    Attributes:
        gain: Accuracy of the first minus that of the second.
        only_first: Rows that the first alone gets right.
        only_second: Rows that the second alone gets right.
        p_value: One-sided exact McNemar test (McNemar 1947) of "the first is no better".
    """

    gain: float
    only_first: int
    only_second: int
    p_value: float


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Compares which rows (N,) two models get right."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    apart = only_first + only_second
    p_value = binomtest(only_first, apart, alternative="greater").pvalue if apart else 1.0
    gain = (only_first - only_second) / max(1, len(first))
    return Paired(gain, only_first, only_second, float(p_value))


@dataclass(frozen=True, slots=True)
class Gain:
    """A difference of accuracies with its interval.

    Attributes:
        value: The difference.
        low: Lower end of the 95% interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def bootstrap(values: NDArray[np.float64], seed: int = 0) -> Gain:
    """Mean of a table with its percentile interval (Efron 1979), both axes drawn again.

    Args:
        values: (repeats, rows): for example which test rows were right in each repeat, or the
            difference of that between two methods, which makes the interval a paired one.
        seed: Of the resampling.
    """
    random = np.random.default_rng(seed)
    repeats, rows = values.shape
    means = np.empty(RESAMPLES)
    for at in range(RESAMPLES):
        weights = random.multinomial(rows, np.full(rows, 1 / rows))
        means[at] = (values @ weights)[random.integers(0, repeats, repeats)].mean() / rows
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Gain(float(values.mean()), float(low), float(high))
