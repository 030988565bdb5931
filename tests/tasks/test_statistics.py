import math

import numpy as np
import pytest

from tasks.statistics import paired, share

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
