from dataclasses import replace

import numpy as np
import pytest

from tasks import estimators
from tasks.errors import ParamsError
from tasks.estimators import ESTIMATORS
from tasks.estimators.label_spreading import LabelSpreading


def moons(tabled, each=100):
    """Two interleaved half circles with one label each, which no straight line tells apart."""
    turn = np.linspace(0, np.pi, each)
    upper = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    lower = np.stack([1 - np.cos(turn), 0.5 - np.sin(turn)], axis=1)
    truth = np.repeat([0, 1], each)
    labels = np.full(2 * each, -1)
    labels[[0, 2 * each - 1]] = [0, 1]
    return tabled(np.concatenate([upper, lower]), labels, 2), truth


def test_one_label_runs_along_its_moon(tabled):
    part, truth = moons(tabled)
    fitted = LabelSpreading(neighbours=4, reach=0.99).fit(part, 0)
    assert np.array_equal(fitted.answers.argmax(1), truth)


def test_a_far_reach_mixes_more(digits):
    part, _ = digits
    short, far = (
        np.exp(LabelSpreading(reach=reach).fit(part, 0).answers).max(axis=1)
        for reach in (0.01, 0.99)
    )
    known = part.labels >= 0
    assert short[known].min() > 0.99
    assert far.mean() < short.mean() - 0.1


def test_answers_follow_the_papers_formula(digits):
    part, _ = digits
    _, points = estimators.condensed(part, 15, 0)
    near = estimators.neighbour_graph(points, 6).toarray()
    degrees = np.diag(near.sum(1) ** -0.5)
    start = np.eye(10)[part.labels] * (part.labels >= 0)[:, None]
    resting = np.linalg.solve(np.eye(400) - 0.7 * degrees @ near @ degrees, 0.3 * start)
    resting /= resting.sum(axis=1, keepdims=True)
    method = LabelSpreading(components=15, neighbours=6, reach=0.7)
    np.testing.assert_allclose(np.exp(method.fit(part, 0).answers), resting, atol=5e-3)


def test_a_new_row_takes_the_mean_of_its_neighbours(digits):
    part, _ = digits
    method = LabelSpreading(components=15, neighbours=3)
    fitted = method.fit(part, 0)
    front, points = estimators.condensed(part, 15, 0)
    new = replace(part, inputs=part.inputs[:5] + 0.5)
    apart = np.linalg.norm(points - front.transform(new.inputs)[:, None], axis=2)
    near = apart.argsort(axis=1)[:, :3]
    expected = np.exp(fitted.answers)[near].mean(axis=1)
    found = method.logits(fitted.model, replace(new, names=part.names[:5]))
    np.testing.assert_allclose(np.exp(found), expected, atol=1e-4)


def test_it_learns_from_texts_and_numbers(digits, said, texts, right):
    for part, truth in (digits, (said, texts[1])):
        assert right(LabelSpreading().fit(part, 0).answers, part, truth) > 0.7


def test_rows_that_nothing_reaches_are_undecided(tabled):
    part = tabled([[0.0], [0.1], [50.0], [50.1], [99.0], [99.1]], [0, -1, 1, -1, -1, -1], 2)
    method = LabelSpreading(neighbours=1)
    fitted = method.fit(part, 0)
    np.testing.assert_allclose(np.exp(fitted.answers[4:]), 0.5, rtol=1e-4)
    np.testing.assert_allclose(np.exp(method.logits(fitted.model, part)[4:]), 0.5, rtol=1e-4)


@pytest.mark.parametrize("wrong", [{"components": 0}, {"neighbours": 0}, {"reach": 1.0}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        ESTIMATORS.parse({"name": "label_spreading", **wrong})
