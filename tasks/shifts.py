"""How far two samples lie apart, and how likely chance alone does that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

BINS = 10
HALF = 0.5
FEWEST_EXPECTED = 5
TWO = 2
PERMUTATIONS_AT_ONCE = 256
TEXT_CHARACTERS = 500
NGRAMS, MOST_NGRAMS = (2, 4), 50_000
COMPONENTS = 16

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shift:
    """One comparison of two samples.

    Attributes:
        what: What was compared, as sentences call it.
        p_value: Of "both come from one distribution".
        index: Population stability index, or None where the comparison has no bins.
    """

    what: str
    p_value: float
    index: float | None = None


def stability_index(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Population stability index of counts (B,) and (B,), natural logarithm.

    The sum of (q - p) ln(q / p) over the bins: Jeffreys' divergence of the shares, as credit
    scoring uses it; by custom 0.1 is a small shift and 0.25 a large one. Half a row is added to
    every bin, so that an empty one gives no infinity.
    """
    bins = len(first)
    before = (first + HALF) / (first.sum() + HALF * bins)
    after = (second + HALF) / (second.sum() + HALF * bins)
    return float(((after - before) * np.log(after / before)).sum())


def numeric(what: str, first: Matrix, second: Matrix) -> Shift:
    """Kolmogorov and Smirnov's two-sample test of numbers (N,) and (M,), each at least 1.

    The index is over tenths of the first sample.
    """
    found: Any = scipy.stats.ks_2samp(first, second, method="asymp")
    edges = np.unique(np.quantile(first, np.linspace(0, 1, BINS + 1)[1:-1]))
    counts = [
        np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
        for values in (first, second)
    ]
    return Shift(what, float(found.pvalue), stability_index(*counts))


def categorical(what: str, first: Sequence[str], second: Sequence[str]) -> Shift:
    """Pearson's chi-square test of homogeneity; Fisher's exact test where two categories are left.

    Categories of which fewer than 5 rows are expected in either sample are taken together (Cochran
    1954, Biometrics 10).
    """
    names, codes = np.unique(np.asarray([*first, *second], dtype=np.str_), return_inverse=True)
    counts = [np.bincount(part, minlength=len(names)) for part in np.split(codes, [len(first)])]
    return counted(what, *counts)


def counted(what: str, first: NDArray[np.intp], second: NDArray[np.intp]) -> Shift:
    """The same test of counts by category, (C,) and (C,)."""
    return Shift(what, _homogeneity(first, second), stability_index(first, second))


def _homogeneity(first: NDArray[np.intp], second: NDArray[np.intp]) -> float:
    table = _pooled(np.stack([first, second]))
    if table.shape[1] < TWO:
        return 1.0
    found: Any = (
        scipy.stats.fisher_exact(table)
        if table.shape[1] == TWO
        else scipy.stats.chi2_contingency(table)
    )
    return float(found[1])


def _pooled(table: NDArray[np.intp]) -> NDArray[np.intp]:
    """Rarest columns of (2, C) taken together until every cell may be expected to hold enough."""
    table = table[:, np.argsort(-table.sum(0), kind="stable")]
    table = table[:, table.sum(0) > 0]
    smaller = table.sum(1).min() / max(1, table.sum())
    while table.shape[1] > TWO and table[:, -1].sum() * smaller < FEWEST_EXPECTED:
        table = np.column_stack([table[:, :-2], table[:, -2:].sum(1)])
        table = table[:, np.argsort(-table.sum(0), kind="stable")]
    return table


def discrepancy(
    first: Matrix, second: Matrix, *, permutations: int, seed: int
) -> tuple[float, float]:
    """Maximum mean discrepancy (Gretton et al. 2012, JMLR 13:723) of rows (N, D) and (M, D).

    Gaussian kernel whose width is the median distance within both samples together; biased
    estimate; p-value of a permutation test, exact for whatever size.

    Returns:
        The squared discrepancy, and the p-value.
    """
    squares = scipy.spatial.distance.pdist(np.concatenate([first, second]), "sqeuclidean")
    width = float(np.median(squares)) or float(squares.mean()) or 1.0
    kernel = scipy.spatial.distance.squareform(np.exp(-squares / width))
    np.fill_diagonal(kernel, 1.0)
    signs = np.repeat([1 / len(first), -1 / len(second)], [len(first), len(second)])
    observed = float(signs @ kernel @ signs)
    random, beyond = np.random.default_rng(seed), 0
    for start in range(0, permutations, PERMUTATIONS_AT_ONCE):
        count = min(PERMUTATIONS_AT_ONCE, permutations - start)
        drawn = random.permuted(np.tile(signs, (count, 1)), axis=1)
        statistics = np.einsum("ij,ij->i", drawn @ kernel, drawn)
        # Equal partitions add up in another order.
        beyond += int((statistics >= observed - 1e-12).sum())
    return observed, (1 + beyond) / (1 + permutations)


def classified(first: Matrix, second: Matrix, *, seed: int) -> tuple[float, float]:
    """Classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv:1610.06545), cross-fitted.

    Logistic regression learns on one half of either sample to tell them apart, and its scores on
    the other half are compared by the rank test of Mann and Whitney; then the halves change places.
    Twice the mean of the two p-values is a p-value, however they depend on each other (Vovk and
    Wang 2020, Biometrika 107).

    Args:
        first: Rows (N, D), N at least 4.
        second: Rows (M, D), M at least 4.
        seed: Of the halves.

    Returns:
        Mean area under the ROC curve on held-out halves, and the p-value.
    """
    random = np.random.default_rng(seed)
    halves = [np.array_split(random.permutation(sample), 2) for sample in (first, second)]
    found = [_told_apart(halves, learnt=learnt) for learnt in (0, 1)]
    areas, p_values = zip(*found, strict=True)
    return float(np.mean(areas)), min(1.0, 2 * float(np.mean(p_values)))


def _told_apart(halves: list[list[Matrix]], *, learnt: int) -> tuple[float, float]:
    from sklearn.linear_model import (  # noqa: PLC0415 - seconds that no other look needs
        LogisticRegression,
    )

    known = [sample[learnt] for sample in halves]
    asked = [sample[1 - learnt] for sample in halves]
    labels = np.repeat([0, 1], [len(sample) for sample in known])
    model = LogisticRegression(class_weight="balanced", max_iter=200)
    model.fit(np.concatenate(known), labels)
    before, after = (model.decision_function(sample) for sample in asked)
    test: Any = scipy.stats.mannwhitneyu(after, before, alternative="greater", method="asymptotic")
    return float(test.statistic) / (len(before) * len(after)), float(test.pvalue)


def embed_arrays(first: NDArray[Any], second: NDArray[Any], *, seed: int) -> tuple[Matrix, Matrix]:
    """Principal components of encoded rows (N, …) and (M, …), and how much they leave out.

    Fitted to both samples together, as which row belongs to which must not matter to the embedding:
    then a test on it is exact. Each coordinate has deviation 1.
    """
    flat = np.concatenate([first, second]).reshape(len(first) + len(second), -1)
    flat = flat.astype(np.float64) - flat.mean(0)
    components = _leading(flat, seed)
    left = (flat**2).sum(1) - (components**2).sum(1)
    # Noise lies outside of the largest components.
    rest = np.sqrt(np.maximum(left, 0.0))
    return _parted(np.column_stack([components, rest]), len(first))


def embed_texts(first: Sequence[str], second: Sequence[str], *, seed: int) -> tuple[Matrix, Matrix]:
    """Latent semantic coordinates (Deerwester et al. 1990) of texts, by their first 500 characters.

    Character n-grams within words, so that no language needs words of its own; weighted by TF-IDF,
    fitted to both samples together as in `embed_arrays`.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415 - as above

    texts = [text[:TEXT_CHARACTERS] for text in (*first, *second)]
    weigher = TfidfVectorizer(
        analyzer="char_wb", ngram_range=NGRAMS, max_features=MOST_NGRAMS, sublinear_tf=True
    )
    weights: Any = weigher.fit_transform(texts)
    found = _leading(weights, seed)
    lengths = np.asarray([math.log1p(len(text)) for text in texts])
    return _parted(np.column_stack([found, lengths]), len(first))


def _leading(rows: Any, seed: int) -> Matrix:  # noqa: ANN401 - an array, or scipy's sparse one
    """Coordinates (N, at most 16) of rows (N, F) along their leading singular vectors."""
    from sklearn.utils.extmath import randomized_svd  # noqa: PLC0415 - as above

    left, sizes, _ = randomized_svd(rows, min(COMPONENTS, *rows.shape), random_state=seed)
    return left * sizes


def _parted(rows: Matrix, count: int) -> tuple[Matrix, Matrix]:
    deviation = rows.std(0)
    scaled = (rows - rows.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    return scaled[:count], scaled[count:]
