import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, signal, stats

from tasks import statistics
from tasks.statistics import (
    Gain,
    Paired,
    bootstrap,
    estimate,
    holm,
    medians_again,
    paired,
    separation,
    share,
    sums_again,
)

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


# Differences of accuracies: the score interval


def likeliest(first, second, rows, difference):
    """Share of rows that the second alone gets right, by search where Tango has a formula."""

    def surprise(share):
        parts = np.asarray([share + difference, share, 1 - 2 * share - difference])
        counts = np.asarray([first, second, rows - first - second])
        return -(counts * np.log(np.maximum(parts, 1e-300))).sum()

    ends = max(0.0, -difference), (1 - difference) / 2
    return optimize.minimize_scalar(
        surprise, bounds=ends, method="bounded", options={"xatol": 1e-12}
    ).x


@pytest.mark.parametrize("counts", [(9, 2, 50), (2, 9, 50), (30, 30, 200), (150, 86, 1600)])
@pytest.mark.parametrize("difference", [-0.3, -0.05, 0.0, 0.02, 0.2])
def test_the_score_is_tangos(counts, difference):
    first, second, rows = counts
    share = likeliest(*counts, difference)
    deviation = math.sqrt(rows * (2 * share + difference * (1 - difference)))
    expected = (first - second - rows * difference) / deviation
    assert Paired(*counts).score(difference) == pytest.approx(expected, rel=1e-4)


def quartic(first, second, rows, z):
    """The interval in closed form (Yang, Sun and Hardin 2012): two roots of a quartic."""
    g, apart, gap = z**2, first + second, first - second
    terms = [
        rows**2 * (rows / g + 1) ** 2,
        -rows * gap * (rows / g + 1) * (4 * rows / g + 1),
        2 * rows * gap**2 * (3 * rows / g + 2) / g - rows**2 * (apart / g + 1),
        rows * gap * (2 * apart / g + 1) - gap**3 * (4 * rows / g + 1) / g,
        gap**2 * (gap**2 / g - apart) / g,
    ]
    roots = np.roots(terms)
    return roots[np.abs(roots.imag) < 1e-9].real


@pytest.mark.parametrize(
    "counts", [(9, 2, 50), (2, 9, 50), (150, 86, 1600), (0, 3, 40), (4, 0, 30)]
)
def test_the_lower_bound_is_the_closed_form_ones(counts):
    found = Paired(*counts).lower_bound(0.025)
    assert np.abs(quartic(*counts, Z) - found).min() < 1e-7
    assert found < Paired(*counts).gain


@pytest.mark.parametrize("rows", [1, 10, 1000])
def test_equal_answers_have_a_bound_below_zero(rows):
    assert Paired(0, 0, rows).lower_bound(0.025) == pytest.approx(-(Z**2) / (rows + Z**2))
    assert Paired(0, 0, rows).score(0.0) == 0.0


def test_all_rows_one_way_are_the_ends_of_the_scale():
    """By hand: with every row won, (n - z²) / (n + z²)."""
    z = 1.6448536269514722
    assert Paired(0, 5, 5).lower_bound(0.05) == -1.0
    for rows in (1, 5, 500):
        expected = (rows - z**2) / (rows + z**2)
        assert Paired(rows, 0, rows).lower_bound(0.05) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60), st.floats(0.001, 0.49))
def test_the_bound_and_the_test_agree(first, second, neither, alpha):
    found = Paired(first, second, first + second + neither + 1)
    low = found.lower_bound(alpha)
    assert -1 <= low <= found.gain
    assert found.score(low - 1e-6) >= stats.norm.ppf(1 - alpha) or low < -0.99
    assert found.score(low + 1e-6) <= stats.norm.ppf(1 - alpha)


@pytest.mark.parametrize(
    ("first", "second", "rows"),
    [(0.05, 0.10, 100), (0.01, 0.02, 300), (0.2, 0.2, 60), (0, 0.01, 80)],
)
def test_the_bound_lies_below_the_truth_as_often_as_it_says(first, second, rows):
    """In 1,500 worlds; 0.93 lies 3.5 standard errors below 0.95."""
    drawn = np.random.default_rng(0).multinomial(rows, (first, second, 1 - first - second), 1500)
    counts, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    held = [Paired(*pair, rows).lower_bound(0.05) <= first - second for pair in counts.tolist()]
    assert np.average(held, weights=times) >= 0.93


@pytest.mark.parametrize(("lost", "margin"), [(10, 0.06), (5, 0.05), (11, 0.0999), (40, 0.3)])
def test_where_no_row_is_won_the_loss_is_binomial(lost, margin):
    """The likeliest share of rows won is then zero, as long as the loss is near the margin."""
    found = Paired(0, lost, 100).worse_by_more(margin)
    assert found == pytest.approx(stats.binom.sf(lost - 1, 100, margin), abs=1e-9)


@pytest.mark.parametrize("counts", [(2, 12, 40), (5, 9, 30), (0, 6, 25), (7, 3, 20)])
@pytest.mark.parametrize("margin", [0.02, 0.1])
def test_being_worse_by_more_is_a_sum_over_all_tables(counts, margin):
    first, second, rows = counts
    share = likeliest(*counts, -margin)
    won, lost = np.meshgrid(np.arange(rows + 1), np.arange(rows + 1), indexing="ij")
    tables = (won + lost <= rows) & (lost - won >= second - first)
    cells = np.stack([won[tables], lost[tables], (rows - won - lost)[tables]], axis=1)
    parts = (share - margin, share, 1 - 2 * share + margin)
    expected = stats.multinomial.pmf(cells, rows, np.maximum(parts, 0)).sum()
    assert Paired(*counts).worse_by_more(margin) == pytest.approx(expected, abs=1e-5)


def test_equal_answers_are_not_shown_to_be_worse():
    assert Paired(0, 0, 100).worse_by_more(0.05) == pytest.approx(1.0)
    assert Paired(0, 0, 100).worse_by_more(0.0) == pytest.approx(1.0)
    assert Paired(100, 0, 100).worse_by_more(0.0) == pytest.approx(1.0)
    assert Paired(0, 100, 100).worse_by_more(0.5) < 1e-12


# Many tests at once


def step_down(p_values, alpha):
    """Holm's procedure as it is told: the smallest first, until one is not rejected."""
    rejected, left = set(), len(p_values)
    for at in sorted(range(len(p_values)), key=lambda at: p_values[at]):
        if p_values[at] * left > alpha:
            break
        rejected.add(at)
        left -= 1
    return rejected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.999))
def test_holms_adjustment_rejects_what_his_steps_do(p_values, alpha):
    adjusted = holm(np.asarray(p_values))
    assert set(np.flatnonzero(adjusted <= alpha).tolist()) == step_down(p_values, alpha)


def test_holm_by_hand():
    found = holm(np.asarray([0.04, 0.01, 0.03, 0.5]))
    assert found == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert holm(np.asarray([0.7, 0.8])).tolist() == [1.0, 1.0]


# Sums over rows drawn again


def test_sums_again_are_those_of_a_loop_over_drawn_rows():
    columns = np.random.default_rng(0).normal(size=(40, 3))
    found = sums_again(columns)
    assert found.shape == (statistics.RESAMPLES, 3)
    drawn = np.random.default_rng(1).integers(0, 40, (4000, 40))
    naive = columns[drawn].sum(axis=1)
    assert found.mean(axis=0) == pytest.approx(columns.sum(axis=0), abs=0.6)
    assert np.cov(found.T) == pytest.approx(np.cov(naive.T), abs=0.12 * np.cov(naive.T).max())


def test_each_resample_has_as_many_rows(monkeypatch):
    """Also where they are drawn in several batches."""
    monkeypatch.setattr(statistics, "WEIGHTS_AT_ONCE", 700)
    found = sums_again(np.ones((100, 2), np.float32))
    assert (found == 100).all()
    assert found.dtype == np.float32
    again = sums_again(np.eye(100)[:, :5])
    assert len(np.unique(again[:50], axis=0)) > 20


def test_the_columns_of_a_resample_share_its_rows():
    random = np.random.default_rng(0).normal(size=(30, 1))
    found = sums_again(np.hstack([random, 2 * random]))
    assert found[:, 1] == pytest.approx(2 * found[:, 0])


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=30),
    st.lists(st.integers(0, 5), min_size=2, max_size=30),
)
def test_separation_is_the_share_of_pairs_in_order(first, second):
    pairs = [(a > b) + (a == b) / 2 for a in first for b in second]
    found = separation(np.asarray(first, float), np.asarray(second, float))
    assert found.auc == pytest.approx(np.mean(pairs))
    assert 0 <= found.low <= found.auc <= found.high <= 1


def test_the_interval_of_a_separation_holds_the_truth_as_often_as_it_says():
    """Normal scores one standard deviation apart: the area is Phi(1 / sqrt 2)."""
    generator = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    held = 0
    for _ in range(500):
        found = separation(generator.normal(1, 1, 60), generator.normal(0, 1, 90))
        held += found.low <= truth <= found.high
    assert 0.92 <= held / 500 <= 0.98


# Medians of what was measured one after another


def by_order(values):
    """The distribution-free interval of the median of independent values."""
    ranked, count = np.sort(values), len(values)
    at = int(stats.binom.ppf(0.025, count, 0.5))
    return ranked[at], ranked[count - 1 - at]


def of_blocks(values):
    found = estimate(float(np.median(values)), medians_again(values[:, None])[:, 0])
    return found.low, found.high


def held_on(random, count, memory):
    """A series whose neighbours correlate by `memory`; its true median is 0."""
    noise = random.normal(size=count + 100) * math.sqrt(1 - memory**2)
    return signal.lfilter([1.0], [1.0, -memory], noise)[100:]


def test_of_independent_values_the_interval_is_nearly_that_of_order_statistics():
    values = np.random.default_rng(0).exponential(size=900)
    low, high = by_order(values)
    width = high - low
    assert of_blocks(values) == (
        pytest.approx(low, abs=0.35 * width),
        pytest.approx(high, abs=0.35 * width),
    )


def test_what_lasts_for_a_while_widens_the_interval_as_far_as_it_has_to():
    random = np.random.default_rng(1)
    series = [held_on(random, 300, 0.8) for _ in range(40)]
    held = {
        method: sum(low <= 0 <= high for low, high in map(method, series))
        for method in (of_blocks, by_order)
    }
    assert held[of_blocks] >= 33
    assert held[by_order] <= 27


def test_columns_are_drawn_alike():
    first = np.random.default_rng(2).random(50)
    again = medians_again(np.stack([first, 3 * first], axis=1))
    np.testing.assert_allclose(again[:, 1], 3 * again[:, 0])
    assert again[:, 0].std() > 0
    assert (medians_again(first[:, None], seed=1) != again[:, :1]).any()


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=12))
def test_a_median_lies_in_its_interval_and_that_among_the_values(values):
    median = float(np.median(values))
    found = estimate(median, medians_again(np.asarray(values)[:, None])[:, 0])
    assert min(values) <= found.low <= found.value == median <= found.high <= max(values)
