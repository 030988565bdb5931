from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.preprocessing import StandardScaler

from tasks import estimators
from tasks.errors import ParamsError
from tasks.estimators import ESTIMATORS
from tasks.estimators.logistic_regression import LogisticRegression


def test_texts_are_answered_as_by_scikit_learn_on_the_labelled_rows(said):
    rows, shown = estimators.readable(said), said.labels >= 0
    known = [row for row, kept in zip(rows, shown, strict=True) if kept]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    words.set_params(token_pattern=r"(?u)\b\w+\b")  # noqa: S106
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    wide = scipy.sparse.hstack([one.fit(known).transform(rows) for one in (words, characters)])
    wide = wide.tocsr()
    reference = Reference(C=3.0, max_iter=1000).fit(wide[shown], said.labels[shown])
    found = LogisticRegression(strength=3.0).fit(said, 0).answers
    np.testing.assert_allclose(np.exp(found), reference.predict_proba(wide), atol=1e-4)


def test_numbers_too(digits, right):
    part, truth = digits
    shown = part.labels >= 0
    scale = StandardScaler().fit(part.inputs[shown])
    wide = scale.transform(part.inputs)
    reference = Reference(max_iter=1000).fit(wide[shown], part.labels[shown])
    found = LogisticRegression().fit(part, 0).answers
    np.testing.assert_allclose(np.exp(found), reference.predict_proba(wide), atol=1e-4)
    assert right(found, part, truth) > 0.8


def test_hidden_rows_teach_nothing(said):
    found = LogisticRegression().fit(said, 0).answers
    alone = LogisticRegression().fit(said.labelled, 0).answers
    np.testing.assert_array_equal(found[said.labels >= 0], alone)


def test_strength_sharpens(said):
    weak, strong = (LogisticRegression(strength=c).fit(said, 0).answers for c in (0.1, 100.0))
    assert np.exp(strong).max(1).mean() > np.exp(weak).max(1).mean() + 0.1


def test_two_classes(tabled):
    part = tabled([[0.0], [1.0], [0.1], [0.9]], [0, 1, -1, -1], 2)
    assert LogisticRegression().fit(part, 0).answers.argmax(1).tolist() == [0, 1, 0, 1]
    swapped = replace(part, labels=np.array([1, 0, -1, -1]))
    assert LogisticRegression().fit(swapped, 0).answers.argmax(1).tolist() == [1, 0, 1, 0]


def test_a_strength_of_0_is_refused():
    with pytest.raises(ParamsError, match="strength"):
        ESTIMATORS.parse({"name": "logistic_regression", "strength": 0.0})
