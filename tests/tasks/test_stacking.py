from math import log

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.special import softmax

from tasks import stacking
from tasks.stacking import FOLDS, PENALTIES, PRIOR, Scene, Trial, evidence_of, penalty


@pytest.fixture
def trial():
    random = np.random.default_rng(0)
    unseen = np.array([False, True, False, True])
    distances = np.where(unseen, 0, random.normal(size=(30, 4)))
    similarity = random.normal(size=(30, 4, 3))
    evidence = evidence_of(distances, similarity, unseen)
    labels = random.choice([0, 1, 3], 30)
    return Trial(evidence, labels, unseen, np.array([True, True, False, True]))


def test_evidence_is_weighted_as_stated():
    distances = np.array([[0.5, 0.0]])
    similarity = np.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    found = evidence_of(distances, similarity, np.array([False, True]))
    expected = [[[0.5, 1, 2, 3, 0, 0, 0, 0], [0, 0, 0, 0, 4, 5, 6, 1]]]
    np.testing.assert_array_equal(found, expected)


def test_the_loss_is_cross_entropy_with_classes_counting_alike(trial):
    weights = np.random.default_rng(1).normal(size=8)
    scores = np.asarray(trial.evidence, float) @ weights
    expected = 0.0
    for row, label in enumerate(trial.labels):
        chances = softmax(scores[row, [0, 1, 3]])[[0, 1, 3].index(label)]
        expected -= log(chances) / (trial.labels == label).sum()
    assert trial.loss(weights)[0] == pytest.approx(expected, rel=1e-6)


def test_its_gradient_is_right(trial):
    weights = np.random.default_rng(2).normal(size=8)
    error = check_grad(lambda w: trial.loss(w)[0], lambda w: trial.loss(w)[1], weights)
    assert error < 1e-4
    assert np.abs(trial.loss(weights)[1]).max() > 0.1


def test_the_penalty_is_the_best_of_those_tried(trial):
    weights = np.array([3.0, 0, 0, 0, 1.0, 0.5, 0, -2.0])

    def mean(by):
        scores = np.where(trial.possible, trial.evidence @ (weights + by * np.eye(8)[-1]), -np.inf)
        right = scores.argmax(1) == trial.labels
        held_out = np.isin(trial.labels, [1, 3])
        seen, unseen = right[~held_out].mean(), right[held_out].mean()
        return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0

    grid = PENALTIES
    level = [np.sum([mean(by) for by in grid[max(0, at - 2) : at + 3]]) for at in range(len(grid))]
    found = penalty([trial], weights)
    assert found == pytest.approx(grid[int(np.argmax(level))])
    assert mean(found) > mean(-2.0)


def scene(labels, classes, learnt):
    """Distances are 1 for classes that were learnt; the first similarity names the row."""

    def distances(rows, asked):
        learnt.append(rows)
        found = np.zeros((len(asked), classes))
        found[:, np.unique(labels[rows])] = 1
        return found

    similarity = np.zeros((len(labels), classes, 3), np.float32)
    similarity[:, :, 0] = np.arange(len(labels))[:, None]
    return Scene(distances, similarity, labels)


def test_trials_hide_seen_classes_and_hold_out_rows():
    labels = np.arange(480) % 12
    labels[np.isin(labels, [3, 7, 11]) | (np.arange(480) >= 240)] = -1
    learnt = []
    trials = list(scene(labels, 12, learnt)._trials(0))
    assert len(trials) == FOLDS
    for trial, rows in zip(trials, learnt, strict=True):
        asked = trial.evidence[:, :, [1, 4]].sum(axis=2)[:, 0].astype(int)
        assert np.array_equal(trial.labels, labels[asked])
        assert not set(asked) & set(rows)
        hidden = np.flatnonzero(trial.unseen)
        assert len(hidden) == 2  # as large a share of the nine as three is of the twelve
        assert not set(hidden) & {3, 7, 11}
        assert not set(hidden) & set(labels[rows])
        assert set(hidden) <= set(trial.labels)
        assert not trial.possible[[3, 7, 11]].any()
        assert (trial.evidence[:, hidden, 0] == 0).all()
        assert (trial.evidence[:, hidden, 7] == 1).all()
    assert len({tuple(np.flatnonzero(trial.unseen)) for trial in trials}) == FOLDS


def test_without_seen_classes_to_spare_the_weights_are_the_stated_ones():
    labels = np.where(np.arange(40) < 10, np.arange(40) % 2, -1)
    np.testing.assert_array_equal(scene(labels, 4, []).weights(0), PRIOR)


def test_weights_are_learnt_from_seen_classes():
    """Where the second similarity alone tells classes apart, it comes to count."""
    random = np.random.default_rng(0)
    labels = np.arange(600) % 10
    truth = labels.copy()
    labels[np.isin(labels, [8, 9]) | (np.arange(600) >= 400)] = -1
    similarity = random.normal(size=(600, 10, 3)).astype(np.float32)
    similarity[np.arange(600), truth, 1] += 5

    def distances(rows, asked):
        found = random.normal(size=(len(asked), 10))
        return np.where(np.isin(np.arange(10), labels[rows]), found, 0)

    found = Scene(distances, similarity, labels).weights(0)
    assert found[5] > 3 * abs(found[[4, 6]]).max()
    assert found[2] > 3 * abs(found[[1, 3]]).max()
    assert abs(found[0]) < 1


def test_the_penalty_on_seen_classes_joins_the_last_weight(monkeypatch):
    labels = np.arange(480) % 12
    labels[np.isin(labels, [3, 7, 11]) | (np.arange(480) >= 240)] = -1
    found = []
    for by in (0.0, 7.0):
        monkeypatch.setattr(stacking, "PENALTIES", np.array([by]))
        found.append(scene(labels, 12, []).weights(0))
    np.testing.assert_allclose(found[1] - found[0], [0, 0, 0, 0, 0, 0, 0, 7])
