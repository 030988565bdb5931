from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from tasks.errors import ParamsError
from tasks.estimators import ESTIMATORS
from tasks.estimators.svm import Svm


@pytest.mark.parametrize(("width", "gamma"), [(None, "scale"), (0.002, 0.002)])
def test_answers_are_the_softmax_of_scikit_learns_distances(digits, width, gamma, right):
    part, truth = digits
    shown = part.labels >= 0
    wide = StandardScaler().fit(part.inputs[shown]).transform(part.inputs)
    reference = SVC(C=2.0, gamma=gamma).fit(wide[shown], part.labels[shown])
    expected = softmax(reference.decision_function(wide) / 0.7, axis=1)
    found = Svm(strength=2.0, width=width, temperature=0.7).fit(part, 0).answers
    np.testing.assert_allclose(softmax(found, axis=1), expected, atol=2e-5)
    assert right(found, part, truth) > 0.8


def test_it_tells_a_ring_from_its_middle(tabled):
    turn = np.linspace(0, 2 * np.pi, 40)
    ring = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    truth = np.repeat([0, 1], 40)
    part = tabled(np.concatenate([3 * ring, 0.5 * ring]), np.where(np.arange(80) % 2, -1, truth), 2)
    assert np.array_equal(Svm().fit(part, 0).answers.argmax(1), truth)


def test_two_classes_are_not_mixed_up(tabled):
    part = tabled([[0.0], [1.0], [0.1], [0.9]], [0, 1, -1, -1], 2)
    assert Svm().fit(part, 0).answers.argmax(1).tolist() == [0, 1, 0, 1]
    swapped = replace(part, labels=np.array([1, 0, -1, -1]))
    assert Svm().fit(swapped, 0).answers.argmax(1).tolist() == [1, 0, 1, 0]


def test_hidden_rows_teach_nothing(said):
    found = Svm().fit(said, 0).answers
    np.testing.assert_allclose(
        found[said.labels >= 0], Svm().fit(said.labelled, 0).answers, atol=1e-5
    )


def test_texts(said, texts, right):
    assert right(Svm().fit(said, 0).answers, said, texts[1]) > 0.6


@pytest.mark.parametrize("wrong", [{"strength": 0.0}, {"width": 0.0}, {"temperature": -1.0}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        ESTIMATORS.parse({"name": "svm", **wrong})
