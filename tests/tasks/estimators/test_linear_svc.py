from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from tasks import estimators
from tasks.errors import ParamsError
from tasks.estimators import ESTIMATORS
from tasks.estimators.linear_svc import LinearSvc


def reference(part, labels, strength=1.0):
    """Probabilities of scikit-learn's linear SVC, fitted on these labels."""
    shown = labels >= 0
    wide = StandardScaler().fit(part.inputs[shown]).transform(part.inputs)
    svc = LinearSVC(C=strength, max_iter=10_000, random_state=0).fit(wide[shown], labels[shown])
    return softmax(svc.decision_function(wide) / 0.12, axis=1)


def probabilities(logits):
    return softmax(logits, axis=1)


def test_answers_are_the_softmax_of_distances(digits):
    part, _ = digits
    found = probabilities(LinearSvc().fit(part, 0).answers)
    np.testing.assert_allclose(found, reference(part, part.labels), atol=2e-5)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_temperature_divides_distances_and_changes_no_order(digits, temperature):
    part, _ = digits
    plain, found = (LinearSvc(temperature=t).fit(part, 0).answers for t in (2.0, 2.0 * temperature))
    scaled = probabilities(plain / temperature)
    clipped = scaled > 1e-5
    np.testing.assert_allclose(probabilities(found)[clipped], scaled[clipped], rtol=2e-2)
    assert np.array_equal(plain.argmax(1), found.argmax(1))


def test_hidden_rows_teach_nothing_without_rounds_and_spreading(said):
    found = LinearSvc().fit(said, 0).answers
    alone = LinearSvc().fit(said.labelled, 0).answers
    np.testing.assert_array_equal(found[said.labels >= 0], alone)


def test_a_round_is_a_fit_on_the_most_confident_answers(digits):
    part, _ = digits
    first = reference(part, part.labels)
    labels = part.labels.copy()
    for number in range(10):
        rows = np.flatnonzero((first.argmax(1) == number) & (part.labels < 0))
        order = rows[np.argsort(-first[rows].max(1))]
        labels[order[: int(np.ceil(0.5 * len(rows)))]] = number
    expected = reference(part, labels)
    found = LinearSvc(rounds=1, keep_share=0.5).fit(part, 0).answers
    agree = found.argmax(1) == expected.argmax(1)
    assert agree.mean() > 0.985  # ties at the border of the share
    assert not np.array_equal(found.argmax(1), first.argmax(1))


def test_spreading_is_averaged_in(digits):
    part, _ = digits
    alone = probabilities(LinearSvc().fit(part, 0).answers)
    both = probabilities(LinearSvc(spreading=True, components=20).fit(part, 0).answers)
    _, points = estimators.condensed(part, 20, 0)
    spread = estimators.spreading(points, part.labels, 10, 0.9).label_distributions_
    np.testing.assert_allclose(both, (alone + spread) / 2, atol=1e-4)


def test_the_stored_model_is_the_svc_alone(digits):
    part, _ = digits
    method = LinearSvc(spreading=True)
    fitted = method.fit(part, 0)
    own = probabilities(method.logits(fitted.model, part))
    np.testing.assert_allclose(own, reference(part, part.labels), atol=2e-5)
    assert not np.allclose(own, probabilities(fitted.answers), atol=0.05)


def test_the_pool_helps(tabled, right):
    found = load_digits()
    inputs, truth = found.data[:900], found.target[:900].astype(np.int64)
    labels = np.full(900, -1)
    for number in range(10):
        labels[np.flatnonzero(truth == number)[:4]] = number
    part = tabled(inputs, labels, 10)
    alone = right(LinearSvc().fit(part, 0).answers, part, truth)
    method = LinearSvc(spreading=True, rounds=1)
    fitted = method.fit(part, 0)
    assert right(fitted.answers, part, truth) > alone + 0.05
    assert right(method.logits(fitted.model, part), part, truth) > alone + 0.03


def test_texts(said, texts, right):
    alone = right(LinearSvc().fit(said, 0).answers, said, texts[1])
    both = right(LinearSvc(spreading=True, rounds=1).fit(said, 0).answers, said, texts[1])
    assert alone > 0.6
    assert both > alone


def test_two_classes(tabled):
    part = tabled([[0.0], [1.0], [0.1], [0.9]], [0, 1, -1, -1], 2)
    method = LinearSvc(spreading=True, rounds=1, neighbours=1)
    for labels in ([0, 1, -1, -1], [1, 0, -1, -1]):
        fitted = method.fit(replace(part, labels=np.array(labels)), 0)
        expected = labels[:2] * 2
        assert fitted.answers.argmax(1).tolist() == expected
        assert method.logits(fitted.model, part).argmax(1).tolist() == expected


@pytest.mark.parametrize(
    "wrong", [{"strength": 0.0}, {"temperature": 0.0}, {"rounds": -1}, {"keep_share": 0.0}]
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        ESTIMATORS.parse({"name": "linear_svc", **wrong})
