from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import HistGradientBoostingClassifier

from tasks import estimators
from tasks.errors import ArtifactError, ParamsError
from tasks.estimators import ESTIMATORS, Fitted
from tasks.estimators.gradient_boosting import GradientBoosting
from tasks.modalities import Encoding
from tasks.modalities.tables import Tables
from tasks.modalities.text import Text
from tasks.rows import Part


def part_of(inputs, labels, classes):
    schema = {"shape": [inputs.shape[1]], "classes": [str(at) for at in range(classes)]}
    names = np.asarray([f"{at:064x}" for at in range(len(inputs))])
    return Part(names, inputs.astype(np.float32), labels, Encoding(Tables(), schema))


def few(labels, each, seed=0):
    """The labels with all but `each` of a class hidden."""
    order = np.random.default_rng(seed).permutation(len(labels))
    shown = np.concatenate([order[labels[order] == at][:each] for at in np.unique(labels)])
    hidden = np.full_like(labels, -1)
    hidden[shown] = labels[shown]
    return hidden


CANCER = load_breast_cancer()
INPUTS, LABELS = CANCER.data, CANCER.target.astype(np.int64)


@pytest.fixture(scope="module")
def pool():
    return part_of(INPUTS, few(LABELS, 10), 2)


@pytest.fixture(scope="module")
def fitted(pool):
    return GradientBoosting().fit(pool, 0)


def accuracy(logits):
    return float((logits.argmax(1) == LABELS).mean())


def test_answers_are_those_of_scikit_learn_on_the_labelled_rows(pool):
    method = GradientBoosting(
        rounds=12, learning_rate=0.3, leaves=4, leaf_rows=2, l2=0.5, feature_share=0.5
    )
    known = pool.labels >= 0
    reference = HistGradientBoostingClassifier(
        max_iter=12,
        learning_rate=0.3,
        max_leaf_nodes=4,
        min_samples_leaf=2,
        l2_regularization=0.5,
        max_features=0.5,
        early_stopping=False,
        random_state=7,
    ).fit(INPUTS.astype(np.float32)[known], pool.labels[known])
    found = method.fit(pool, 7)
    expected = reference.predict_proba(INPUTS.astype(np.float32))
    np.testing.assert_allclose(softmax(found.answers, axis=1), expected, atol=2e-6)
    assert found.answers.dtype == np.float32
    assert found.answers.shape == (len(pool), 2)


def test_few_labels_are_enough_where_scikit_learns_defaults_learn_nothing(pool, fitted):
    known = pool.labels >= 0
    plain = HistGradientBoostingClassifier().fit(INPUTS[known][:20], pool.labels[known][:20])
    assert np.ptp(plain.predict_proba(INPUTS)[:, 0]) == 0
    assert accuracy(fitted.answers) > 0.8


def test_hidden_rows_teach_nothing(pool, fitted):
    shown = pool.labels >= 0
    alone = part_of(INPUTS[shown], pool.labels[shown], 2)
    found = GradientBoosting().fit(alone, 0)
    np.testing.assert_array_equal(found.answers, fitted.answers[shown])


def test_the_seed_decides(pool, fitted):
    assert np.array_equal(GradientBoosting().fit(pool, 0).answers, fitted.answers)
    assert not np.array_equal(GradientBoosting().fit(pool, 1).answers, fitted.answers)
    GradientBoosting(rounds=1).fit(pool, 2**53 - 1)


def test_a_class_without_labels_is_impossible():
    iris = load_iris()
    labels = np.where(iris.target == 1, -1, iris.target).astype(np.int64)
    pool = part_of(iris.data, labels, 3)
    found = softmax(GradientBoosting(rounds=20).fit(pool, 0).answers, axis=1)
    assert found[:, 1].max() < 1e-5
    assert (found[iris.target == 2].argmax(1) == 2).all()


def test_several_classes():
    iris = load_iris()
    pool = part_of(iris.data, few(iris.target.astype(np.int64), 8), 3)
    assert (GradientBoosting().fit(pool, 0).answers.argmax(1) == iris.target).mean() > 0.85


@pytest.mark.parametrize("each", [1, 2])
def test_one_or_two_labels_of_a_class_do_not_fail(each):
    pool = part_of(INPUTS, few(LABELS, each), 2)
    assert np.isfinite(GradientBoosting().fit(pool, 0).answers).all()


def test_images_are_flat_numbers(part):
    random = np.random.default_rng(0)
    pictures = random.integers(0, 120, (60, 4, 4, 1))
    labels = np.arange(60) % 2
    pictures[labels == 1, 0, 0] += 120
    pool = part(pictures, np.where(np.arange(60) < 40, labels, -1))
    found = GradientBoosting(feature_share=1.0).fit(pool, 0)
    assert (found.answers.argmax(1) == labels).mean() > 0.95


def test_texts_are_refused(pool):
    encoding = replace(pool.encoding, modality=Text())
    texts = replace(pool, contents=np.full(len(pool), b"text", object), encoding=encoding)
    with pytest.raises(ParamsError, match="texts; take logistic_regression"):
        GradientBoosting().fit(texts, 0)


def test_it_is_stored_and_answers_the_same(tmp_path, pool, fitted):
    estimators.save(tmp_path, GradientBoosting(leaves=5), fitted)
    method, model = estimators.load(tmp_path)
    assert method == GradientBoosting(leaves=5)
    np.testing.assert_array_equal(method.logits(model, pool), fitted.answers)
    np.testing.assert_array_equal(estimators.answers(tmp_path), fitted.answers)


def test_several_classes_are_stored_too(tmp_path):
    iris = load_iris()
    pool = part_of(iris.data, iris.target.astype(np.int64), 3)
    found = GradientBoosting(rounds=3).fit(pool, 0)
    estimators.save(tmp_path, GradientBoosting(rounds=3), found)
    method, model = estimators.load(tmp_path)
    np.testing.assert_array_equal(method.logits(model, pool), found.answers)


class Foreign:
    """A type that is not scikit-learn's."""


def test_a_foreign_type_inside_is_refused(tmp_path, fitted):
    odd = HistGradientBoostingClassifier()
    odd.note = Foreign()
    estimators.save(tmp_path, GradientBoosting(), Fitted(odd, fitted.answers))
    with pytest.raises(ArtifactError, match="Foreign"):
        estimators.load(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"leaves": 1}, {"leaf_rows": 0}, {"feature_share": 0.0}, {"l2": -1.0}]
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        ESTIMATORS.parse({"name": "gradient_boosting", **wrong})
