"""Each test against an implementation of its own, and against what it promises of chance."""

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, ks_2samp
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel

from tasks import shifts

COUNTS = st.lists(st.integers(0, 500), min_size=2, max_size=12)


def draw(seed, *shape, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, shape)


def test_the_index_is_the_sum_over_bins():
    before, after = np.array([100, 50, 30, 0]), np.array([20, 80, 10, 5])
    expected = 0.0
    for first, second in zip(before, after, strict=True):
        p, q = (first + 0.5) / (180 + 2), (second + 0.5) / (115 + 2)
        expected += (q - p) * np.log(q / p)
    assert shifts.stability_index(before, after) == pytest.approx(expected, rel=1e-12)


@given(first=COUNTS, data=st.data())
def test_the_index_is_symmetric_finite_and_zero_for_equal_counts(first, data):
    second = data.draw(st.lists(st.integers(0, 500), min_size=len(first), max_size=len(first)))
    first, second = np.array(first), np.array(second)
    found = shifts.stability_index(first, second)
    assert 0 <= found < np.inf
    assert found == pytest.approx(shifts.stability_index(second, first))
    assert shifts.stability_index(first, first) == 0


def test_numbers_are_compared_as_scipy_does_and_by_tenths():
    first, second = draw(0, 300), draw(1, 200, shift=0.4)
    found = shifts.numeric("age", first, second)
    assert found.p_value == ks_2samp(first, second, method="asymp").pvalue
    edges = [-np.inf, *np.quantile(first, np.arange(1, 10) / 10), np.inf]
    counts = [np.histogram(values, edges)[0] for values in (first, second)]
    assert found.index == pytest.approx(shifts.stability_index(*counts))
    assert found.index > 0.1 > shifts.numeric("age", first, draw(2, 200)).index


def test_a_column_of_one_number_is_no_shift_until_another_comes():
    same = np.zeros(50)
    assert shifts.numeric("flag", same, same) == shifts.Shift("flag", 1.0, 0.0)
    assert shifts.numeric("flag", same, np.ones(50)).p_value < 1e-9


def test_categories_are_compared_by_pearsons_test():
    first, second = ["a"] * 60 + ["b"] * 30 + ["c"] * 40, ["a"] * 20 + ["b"] * 50 + ["c"] * 30
    table = np.array([[60, 30, 40], [20, 50, 30]])
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    statistic = ((table - expected) ** 2 / expected).sum()
    found = shifts.categorical("colour", first, second)
    assert found.p_value == pytest.approx(chi2.sf(statistic, 2), rel=1e-9)


def test_rare_categories_are_taken_together():
    """Forty names that occur once each are one category of forty rows."""
    many = ["a"] * 60 + [f"rare {at}" for at in range(40)]
    few = ["a"] * 60 + ["b"] * 40
    assert shifts.categorical("x", many, many).p_value == pytest.approx(1.0)
    one = shifts.counted("x", np.array([60, 40, 0]), np.array([60, 0, 40]))
    assert shifts.categorical("x", many, few).p_value > one.p_value
    assert shifts.categorical("x", ["a"] * 5, ["a"] * 5).p_value == 1.0


def test_two_categories_are_compared_exactly():
    """Fisher's tail, term by term from the hypergeometric distribution."""

    def chance(at):
        return comb(30, at) * comb(20, 12 - at) / comb(50, 12)

    observed = chance(3)
    expected = sum(chance(at) for at in range(13) if chance(at) <= observed * (1 + 1e-7))
    found = shifts.counted("x", np.array([3, 27]), np.array([9, 11]))
    assert found.p_value == pytest.approx(expected, rel=1e-9)


def test_the_discrepancy_is_that_of_the_definition():
    first, second = draw(0, 30, 3), draw(1, 20, 3, shift=2.0)
    both = np.concatenate([first, second])
    distances = [np.sum((a - b) ** 2) for a, b in itertools.combinations(both, 2)]
    gamma = 1 / np.median(distances)
    expected = (
        rbf_kernel(first, first, gamma).mean()
        + rbf_kernel(second, second, gamma).mean()
        - 2 * rbf_kernel(first, second, gamma).mean()
    )
    size, p_value = shifts.discrepancy(first, second, permutations=99, seed=0)
    assert size == pytest.approx(expected, rel=1e-9)
    assert p_value == 0.01


def test_the_p_value_counts_permutations():
    """Of all 20 ways to part 3 and 3 rows, drawn often enough."""
    first, second = np.array([[0.0], [1.0], [2.0]]), np.array([[1.5], [3.0], [4.0]])
    both = np.concatenate([first, second])

    def size(chosen):
        rest = [at for at in range(6) if at not in chosen]
        return shifts.discrepancy(both[list(chosen)], both[rest], permutations=1, seed=0)[0]

    sizes = [size(chosen) for chosen in itertools.combinations(range(6), 3)]
    exact = np.mean([found >= size((0, 1, 2)) - 1e-12 for found in sizes])
    _, p_value = shifts.discrepancy(first, second, permutations=4999, seed=0)
    assert p_value == pytest.approx(exact, abs=0.03)


def test_equal_seeds_give_equal_answers():
    first, second = draw(0, 60, 4), draw(1, 60, 4)
    for found in (
        lambda: shifts.discrepancy(first, second, permutations=99, seed=3),
        lambda: shifts.classified(first, second, seed=3),
    ):
        assert found() == found()


def test_the_classifier_tells_apart_what_differs_in_a_corner():
    first, second = draw(0, 300, 6), draw(1, 300, 6)
    area, p_value = shifts.classified(first, second, seed=0)
    assert (area < 0.6, p_value > 0.01) == (True, True)
    second[:, 0] += 0.8
    area, p_value = shifts.classified(first, second, seed=0)
    labels = np.repeat([0, 1], 300)
    assert area == pytest.approx(
        roc_auc_score(labels, np.concatenate([first, second])[:, 0]), abs=0.05
    )
    assert p_value < 1e-6


@pytest.mark.parametrize("kind", ["discrepancy", "classified"])
def test_p_values_of_equal_distributions_are_no_smaller_than_chance(kind):
    random = np.random.default_rng(0)
    found = []
    for at in range(100):
        first, second = random.normal(size=(40, 3)), random.normal(size=(30, 3))
        if kind == "discrepancy":
            found.append(shifts.discrepancy(first, second, permutations=99, seed=at)[1])
        else:
            found.append(shifts.classified(first, second, seed=at)[1])
    for alpha in (0.05, 0.2):
        bound = alpha + 3 * (alpha * (1 - alpha) / len(found)) ** 0.5
        assert np.mean(np.array(found) <= alpha) <= bound


def test_an_embedding_does_not_depend_on_which_sample_a_row_is_in():
    rows = draw(0, 40, 5, 5, 1)
    there = np.concatenate(shifts.embed_arrays(rows[:25], rows[25:], seed=0))
    back = np.concatenate(shifts.embed_arrays(rows[:10], rows[10:], seed=0))
    assert np.allclose(there, back)
    assert there.shape == (40, shifts.COMPONENTS + 1)
    assert np.allclose(there.std(0), 1)


def test_what_the_components_leave_out_is_a_coordinate():
    """Rows on a line, and some that lie off it in all directions."""
    line = draw(0, 100, 1) * np.ones((1, 200))
    noisy = line + draw(1, 100, 200)
    first, second = shifts.embed_arrays(line, noisy, seed=0)
    assert second[:, -1].min() > first[:, -1].max()


def test_texts_of_other_words_lie_elsewhere():
    random = np.random.default_rng(0)

    def texts(words, count):
        return [" ".join(random.choice(words, 6)) for _ in range(count)]

    weather, music = ["rain", "snow", "wind", "cloud", "sun"], ["violin", "drum", "flute", "choir"]
    same = shifts.embed_texts(texts(weather, 60), texts(weather, 60), seed=0)
    other = shifts.embed_texts(texts(weather, 60), texts(music, 60), seed=0)
    assert shifts.discrepancy(*same, permutations=199, seed=0)[1] > 0.01
    assert shifts.discrepancy(*other, permutations=199, seed=0)[1] == 1 / 200


def test_the_smallest_samples_have_an_embedding():
    first, second = shifts.embed_texts(["a"], ["a"], seed=0)
    assert np.isfinite(np.concatenate([first, second])).all()
    first, second = shifts.embed_arrays(np.zeros((2, 4)), np.zeros((1, 4)), seed=0)
    assert (first.shape[0], second.shape[0]) == (2, 1)
    assert np.isfinite(first).all()
