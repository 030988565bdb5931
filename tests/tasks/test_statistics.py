import math

import numpy as np
import pytest
from scipy import stats

from tasks import statistics
from tasks.statistics import Gain, bootstrap, paired, share

Z = 1.959963984540054  # the normal distribution's 97.5% point


def wilson(right, count):
    centre = (right + Z**2 / 2) / (count + Z**2)
    half = Z / (count + Z**2) * math.sqrt(right * (count - right) / count + Z**2 / 4)
    return centre - half, centre + half


def mcnemar(first, second):
    """P(at least `first` heads in `first + second` fair throws)."""
    apart = first + second
    return sum(math.comb(apart, at) for at in range(first, apart + 1)) / 2**apart


def rows(*counts):
    """Which rows two models get right: (both, only the first, only the second, neither)."""
    one = np.repeat([True, True, False, False], counts)
    other = np.repeat([True, False, True, False], counts)
    return one, other


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (3, 10), (470, 500), (500, 500)])
def test_the_interval_is_wilsons(right, count):
    found = share(np.arange(count) < right)
    low, high = wilson(right, count)
    assert found.value == right / count
    assert found.rows == count
    assert found.low == pytest.approx(low, abs=1e-12)
    assert found.high == pytest.approx(high, abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(1, 0), (5, 0), (4, 1), (9, 3), (2, 7), (30, 30)])
def test_paired_is_the_exact_mcnemar_test(first, second):
    found = paired(*rows(20, first, second, 5))
    assert (found.only_first, found.only_second) == (first, second)
    assert found.gain == pytest.approx((first - second) / (25 + first + second))
    assert found.p_value == pytest.approx(mcnemar(first, second), rel=1e-9)


def test_the_gain_is_the_difference_of_accuracies():
    one, other = rows(3, 4, 1, 2)
    assert paired(one, other).gain == pytest.approx(one.mean() - other.mean())


def test_equal_models_show_nothing():
    found = paired(*rows(8, 0, 0, 2))
    assert (found.gain, found.p_value) == (0.0, 1.0)


def test_the_test_has_a_direction():
    one, other = rows(10, 8, 0, 2)
    assert paired(one, other).p_value < 0.01
    assert paired(other, one).p_value == 1.0


# Means of tables: repeats by rows


def table(repeats, rows, seed, *, repeat=0.0, row=0.0, rest=0.0):
    """Values of expectation 0.3 that differ by repeat, by row and beside that, each so much."""
    random = np.random.default_rng(seed)
    return (
        0.3
        + repeat * random.standard_normal((repeats, 1))
        + row * random.standard_normal((1, rows))
        + rest * random.standard_normal((repeats, rows))
    )


def drawn_again(values, seed, resamples=4000):
    """The same interval as a loop over drawn positions of both axes."""
    random = np.random.default_rng(seed)
    repeats, rows = values.shape
    means = [
        values[random.integers(0, repeats, repeats)][:, random.integers(0, rows, rows)].mean()
        for _ in range(resamples)
    ]
    return np.quantile(means, [0.025, 0.975])


def test_one_repeat_is_scipys_percentile_bootstrap():
    right = (np.random.default_rng(3).random(150) < 0.8).astype(float)
    found = bootstrap(right[None])
    expected = stats.bootstrap(
        (right,), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = expected.high - expected.low
    assert found.value == pytest.approx(right.mean(), abs=1e-12)
    assert found.low == pytest.approx(expected.low, abs=0.08 * width)
    assert found.high == pytest.approx(expected.high, abs=0.08 * width)


@pytest.mark.parametrize(
    "spread",
    [{"row": 0.4, "rest": 0.1}, {"rest": 0.4}, {"repeat": 0.1, "row": 0.1, "rest": 0.1}],
    ids=["rows differ", "noise", "repeats differ"],
)
def test_both_axes_are_drawn_again(spread):
    values = table(4, 60, 0, **spread)
    found = bootstrap(values)
    low, high = drawn_again(values, 1)
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert found.low == pytest.approx(low, abs=0.08 * (high - low))
    assert found.high == pytest.approx(high, abs=0.08 * (high - low))


@pytest.mark.parametrize(
    ("repeats", "spread"),
    [
        (1, {"row": 0.4}),
        (3, {"row": 0.4, "rest": 0.1}),
        (3, {"rest": 0.4}),
        (3, {"repeat": 0.03, "row": 0.2, "rest": 0.2}),
        (10, {"repeat": 0.1, "row": 0.2, "rest": 0.2}),
    ],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch, repeats, spread):
    """In 150 tables; 0.88 lies 4 standard errors below 0.95. More than that is no lie."""
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    found = [bootstrap(table(repeats, 30, seed, **spread), seed) for seed in range(150)]
    held = [one.low <= 0.3 <= one.high for one in found]
    assert np.mean(held) >= 0.88


def test_it_does_not_hold_what_is_not_true(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    found = [bootstrap(table(3, 50, seed, row=0.1, rest=0.1), seed) for seed in range(40)]
    assert not any(one.low <= 0.4 <= one.high for one in found)


def test_a_paired_interval_is_narrower_than_an_unpaired_one():
    """Two methods that mostly fail on the same rows: the rows' difficulty cancels out."""
    random = np.random.default_rng(0)
    difficulty = random.random((1, 200))
    first = (difficulty + 0.05 * random.random((3, 200)) < 0.80).astype(float)
    second = (difficulty + 0.05 * random.random((3, 200)) < 0.77).astype(float)
    gain = bootstrap(first - second)
    assert gain.value == pytest.approx(first.mean() - second.mean(), abs=1e-12)
    ends = [bootstrap(one) for one in (first, second)]
    unpaired = np.hypot(*(one.high - one.low for one in ends))
    assert gain.high - gain.low < unpaired / 2
    assert gain.low > 0 > ends[0].low - ends[1].high


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 1), (3, 50)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_table_without_spread_has_an_interval_without_width(shape, value):
    found = bootstrap(np.full(shape, value))
    assert (found.low, found.value, found.high) == pytest.approx((value, value, value), abs=1e-12)


def test_one_row_alone_varies_by_repeat():
    found = bootstrap(np.array([[0.0], [1.0]]))
    assert found == Gain(0.5, 0.0, 1.0)


def test_equal_repeats_are_one_repeat():
    """Seeing the same answers three times makes nobody surer of the rows."""
    once = (np.random.default_rng(5).random((1, 80)) < 0.7).astype(float)
    alone, thrice = bootstrap(once), bootstrap(np.repeat(once, 3, axis=0))
    assert thrice.value == pytest.approx(alone.value, abs=1e-12)
    width = alone.high - alone.low
    assert thrice.high - thrice.low == pytest.approx(width, rel=0.12)


def test_the_same_seed_gives_the_same_interval():
    values = table(3, 40, 0, row=0.3, rest=0.3)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values) != bootstrap(values, seed=1)
