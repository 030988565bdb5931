from typing import Literal

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.neighbors import KNeighborsClassifier

from tasks import estimators
from tasks.consult import ConsultParams, consult
from tasks.errors import ParamsError
from tasks.estimators import Estimator, Fitted, readable
from tasks.fit import Watch
from tasks.rows import HIDDEN, Rows
from tasks.sections import parse
from tasks.stage import Work


class Memory(Estimator):
    """Repeats the labels it was given: the nearest labelled row answers."""

    name: Literal["memory"] = "memory"

    def fit(self, pool, seed):
        known = pool.labelled
        model = KNeighborsClassifier(1).fit(readable(known), known.labels)
        return Fitted(model, self.logits(model, pool))


SEEN = []


class Spy(Memory):
    """Writes down which labels it was shown, and the seed."""

    def fit(self, pool, seed):
        SEEN.append((pool.labels.copy(), seed))
        return super().fit(pool, seed)


@pytest.fixture
def seen():
    """What `Spy` wrote down during this test."""
    SEEN.clear()
    return SEEN


@pytest.fixture
def work(prepared, compute, tmp_path):
    """Rows of its own: some tests change labels."""
    folder = tmp_path / "kept"
    folder.mkdir()
    return Work(Rows(prepared), compute, folder, Watch(), tracking=None)


def asked(folds=0, estimator=None):
    return ConsultParams.model_construct(estimator=estimator or Memory(), folds=folds)


def run(work, params):
    """The answers kept, (N, classes) probabilities, and the metrics."""
    metrics = consult.function(work, params)
    return softmax(estimators.answers(work.folder), axis=1), metrics


def shuffled(work, seed=0):
    """Labels dealt out at random: nothing that is not seen can be known."""
    train = work.rows.train
    known = train.labels != HIDDEN
    dealt = np.random.default_rng(seed).permutation(train.labels[known])
    train.labels[known] = dealt
    return known, train.labels


def test_it_keeps_model_answers_and_schema(work):
    params = parse(ConsultParams, {"estimator": {"name": "logistic_regression"}})
    found, metrics = run(work, params)
    assert {path.name for path in work.folder.iterdir()} == {
        estimators.ESTIMATOR_FILE,
        estimators.METHOD_FILE,
        estimators.ANSWERS_FILE,
        "schema.json",
    }
    method, model = estimators.load(work.folder)
    np.testing.assert_allclose(found, np.exp(method.logits(model, work.rows.train)), atol=1e-5)
    validation = work.rows.validation
    said = method.logits(model, validation).argmax(axis=1)
    expected = float((said == validation.labels).mean())
    assert metrics == {"validation_accuracy": expected}


def test_without_folds_a_memory_repeats_its_labels(work):
    known, labels = shuffled(work)
    found, metrics = run(work, asked())
    assert (found.argmax(1) == labels)[known].all()
    assert "out_of_fold_accuracy" not in metrics


def test_with_folds_no_answer_knows_its_own_label(work):
    """What a leak would look like: a memory that is right about labels dealt out at random."""
    known, labels = shuffled(work)
    found, metrics = run(work, asked(folds=5))
    right = (found.argmax(1) == labels)[known]
    assert right.mean() < 0.85
    assert metrics["out_of_fold_accuracy"] == pytest.approx(right.mean())


def test_pool_rows_are_answered_by_the_fit_on_all_labels(work):
    known = work.rows.train.labels != HIDDEN
    plain, _ = run(work, asked())
    folded, _ = run(work, asked(folds=3))
    np.testing.assert_array_equal(folded[~known], plain[~known])
    assert (~known).sum() > 10


def test_every_label_is_hidden_in_one_fold_and_classes_are_dealt_evenly(work, seen):
    labels = work.rows.train.labels.copy()
    run(work, asked(folds=5, estimator=Spy()))
    (whole, _), *folds = seen
    assert np.array_equal(whole, labels)
    assert len(folds) == 5
    hidden = np.stack([(found == HIDDEN) & (labels != HIDDEN) for found, _ in folds])
    assert np.array_equal(hidden.sum(axis=0), labels != HIDDEN)
    for found, seed in folds:
        assert seed == work.compute.seed
        assert np.array_equal(found[found != HIDDEN], labels[found != HIDDEN])
    for number in range(2):
        counts = hidden[:, labels == number].sum(axis=1)
        assert counts.max() - counts.min() <= 1
    assert np.array_equal(work.rows.train.labels, labels)


def test_an_answer_on_a_labelled_row_is_that_of_its_fold(work, seen):
    train = work.rows.train
    answers, _ = run(work, asked(folds=3, estimator=Spy()))
    flat = readable(train)
    for found, _ in seen[1:]:
        for row in np.flatnonzero((found == HIDDEN) & (train.labels != HIDDEN)):
            others = np.flatnonzero(found != HIDDEN)
            nearest = others[np.linalg.norm(flat[others] - flat[row], axis=1).argmin()]
            assert answers[row].argmax() == found[nearest]


def test_the_model_is_the_fit_on_all_labels(work):
    train = work.rows.train
    known = train.labels != HIDDEN
    params = parse(ConsultParams, {"estimator": {"name": "svm"}, "folds": 2})
    folded, _ = run(work, params)
    method, model = estimators.load(work.folder)
    whole = np.exp(method.logits(model, train))
    np.testing.assert_allclose(folded[~known], whole[~known], atol=1e-5)
    assert not np.allclose(folded[known], whole[known], atol=1e-3)


def test_too_few_labels_for_the_folds_are_refused_before_anything_is_fitted(work, seen):
    with pytest.raises(ParamsError, match=r"folds is 9, but class '[hv]' has 5 labelled training"):
        consult.function(work, asked(folds=9, estimator=Spy()))
    assert seen == []
    assert not list(work.folder.iterdir())


def test_a_class_without_labels_is_no_obstacle(work):
    work.rows.train.labels[work.rows.train.labels == 1] = HIDDEN
    found, _ = run(work, asked(folds=2))
    assert (found.argmax(1) == 0).all()


@pytest.mark.parametrize("folds", [1, -1])
def test_one_fold_and_fewer_than_none_are_refused(folds):
    plain = {"estimator": {"name": "svm"}, "folds": folds}
    with pytest.raises(ParamsError, match="folds"):
        parse(ConsultParams, plain, "consult[0]")
