from collections import Counter
from math import log

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from tasks.word_vectors import company, counted_together, word_vectors


def test_words_are_factorised_pointwise_mutual_information():
    rows = ["a b c", "b c d a", "c c e", "e"]
    reader = TfidfVectorizer(analyzer=str.split).fit(rows)
    window = 2
    pairs = Counter()
    for row in (row.split() for row in rows):
        for at, word in enumerate(row):
            for other in range(max(0, at - window), min(len(row), at + window + 1)):
                if other != at:
                    pairs[word, row[other]] += 1
    totals = Counter()
    for (word, _), count in pairs.items():
        totals[word] += count
    smooth = {word: count**0.75 for word, count in totals.items()}
    share = {word: count / sum(smooth.values()) for word, count in smooth.items()}
    words = list(reader.get_feature_names_out())
    expected = np.zeros((5, 5))
    for (word, other), count in pairs.items():
        value = log(count / (totals[word] * share[other]))
        expected[words.index(word), words.index(other)] = max(0.0, value)
    found = word_vectors(rows, reader, window, 5, 0)
    # U √Σ (U √Σ)ᵀ is the symmetric square root of M Mᵀ.
    spectrum, basis = np.linalg.eigh(expected @ expected.T)
    root = basis @ np.diag(np.sqrt(spectrum.clip(0))) @ basis.T
    np.testing.assert_allclose(found @ found.T, root, atol=1e-6)


def test_company_is_the_cosine_of_centred_means_of_words_vectors():
    rows, names = ["red car", "blue car car", "sea and sky", "sky"], ["red", "blue sky", "unheard"]
    found = company(rows, names, 5, 3, 0)
    reader = TfidfVectorizer(sublinear_tf=True).fit(rows)
    vectors = word_vectors(rows, reader, 5, 3, 0)

    def means(texts):
        sums = reader.transform(texts).toarray() @ vectors
        return [row / max(np.linalg.norm(row), 1e-12) for row in sums]

    middle = np.mean(means(rows), axis=0)
    for row, text in enumerate(means(rows)):
        for column, name in enumerate(means(names)[:2]):
            one, other = text - middle, name - middle
            cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            assert found[row, column] == pytest.approx(cosine, abs=1e-9)
    np.testing.assert_array_equal(found[:, 2], 0)


def test_words_of_different_texts_never_stand_together():
    rows = ["a b", "c d"]
    reader = TfidfVectorizer(analyzer=str.split).fit(rows)
    found = counted_together(rows, reader, 10).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = 1
    np.testing.assert_array_equal(found, expected)
