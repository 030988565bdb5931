import copy

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import adjusted_rand_score
from torch import nn

from tasks.fit import FitParams, fit
from tasks.networks import Classifier
from tasks.teachers.clusters import Clusters
from tasks.teachers.supervised import Supervised

SIZES = {"labelled_batch": 6, "pool_batch": 9, "clusters": 5}


def method_of(**changes):
    return Clusters(**(SIZES | changes))


@pytest.fixture
def groups(part, linear, setting_of):
    """A setting of 60 pictures in five groups that lie far apart, and their groups."""
    random = np.random.default_rng(0)
    middles = random.integers(20, 236, (5, 64))
    which = np.arange(60) % 5
    pixels = (middles[which] + random.integers(-15, 16, (60, 64))).clip(0, 255)
    labels = np.where(np.arange(60) < 4, np.arange(60), -1)
    pool = part(pixels.reshape(-1, 8, 8, 1), labels, 4)
    return setting_of(linear(), pool), which


# The clusters


@pytest.mark.parametrize("components", [4, 32])
def test_clusters_are_the_groups_that_rows_lie_in(groups, components):
    setting, which = groups
    clusters = method_of(components=components).lesson(setting).clusters
    assert adjusted_rand_score(which, clusters) == 1
    assert sorted(set(clusters.tolist())) == list(range(5))


def purity(clusters, labels):
    """Share of rows that are of the class that most rows of their cluster are of."""
    found = [np.bincount(labels[clusters == at]).max() for at in np.unique(clusters)]
    return sum(found) / len(labels)


def test_clusters_of_tokens_are_told_by_their_rare_words(tokens, setting_of, bag):
    pool, truth = tokens
    clusters = method_of(clusters=9, components=8).lesson(setting_of(bag(), pool)).clusters
    assert purity(clusters.numpy(), truth.labels) > 0.75


def test_clusters_of_digits_say_much_about_their_classes(digits, linear, setting_of):
    pool, truth = digits()
    clusters = Clusters(clusters=30).lesson(setting_of(linear(10), pool)).clusters.numpy()
    assert len(np.unique(clusters)) == 30
    assert purity(clusters, truth.labels) > 0.8


def test_there_are_no_more_clusters_than_rows(pictures, one_step):
    setting = pictures([0, 1, -1])
    assert sorted(Clusters().lesson(setting).clusters.tolist()) == [0, 1, 2]
    assert torch.isfinite(one_step(Clusters(), setting)[0])


def test_the_structure_is_the_same_every_time_and_labels_play_no_part(groups):
    setting, _ = groups
    first = method_of().lesson(setting).clusters
    torch.manual_seed(7)
    setting.pool.labels = setting.pool.labels * 0
    assert torch.equal(method_of().lesson(setting).clusters, first)


# The loss


def test_is_the_sum_of_two_cross_entropies(groups, recorded):
    setting, _ = groups
    method = method_of(pool_weight=0.7)
    lesson = method.lesson(setting)
    alone = Supervised(labelled_batch=6).lesson(setting)
    labelled = alone(0.0, torch.Generator().manual_seed(0))
    seen = recorded(lesson.head)
    loss = lesson(0.0, torch.Generator().manual_seed(0))
    ((features, logits),) = seen
    rows = setting.pool.clean(torch.arange(60)).flatten(1)
    at = torch.cdist(features, rows).argmin(dim=1)
    truth = lesson.clusters[at].numpy()
    says = log_softmax(logits.double().numpy(), axis=1)
    expected = -0.7 * says[np.arange(9), truth].mean()
    assert (loss - labelled).item() == pytest.approx(expected, rel=1e-4)
    slope = torch.autograd.grad(loss, lesson.head.weight)[0].numpy()
    by_hand = (np.exp(says) - np.eye(5)[truth]).T @ features.double().numpy() * 0.7 / 9
    np.testing.assert_allclose(slope, by_hand, rtol=1e-4, atol=1e-6)
    assert np.abs(by_hand).max() > 0.01


@pytest.fixture
def deep():
    """A classifier whose body learns."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU())
    return Classifier(body, 12, 4)


def test_the_body_learns_from_it_and_the_labels_head_does_not(pictures, one_step, deep):
    setting = pictures(network=deep)
    with_pool = one_step(method_of(), setting)[1]
    double = one_step(method_of(pool_weight=1.0), setting)[1]
    without = one_step(method_of(pool_weight=0.0), setting)[1]
    alone = one_step(Supervised(labelled_batch=6), setting)[1]
    body = "body.1.weight"
    assert (with_pool[body] - without[body]).abs().max() > 1e-3
    torch.testing.assert_close(
        double[body] - without[body], 2 * (with_pool[body] - without[body]), rtol=1e-3, atol=1e-5
    )
    assert torch.equal(with_pool["head.weight"], alone["head.weight"])
    for name, gradient in alone.items():
        assert torch.equal(without[name], gradient)


@pytest.mark.parametrize("training", [True, False])
def test_making_the_lesson_leaves_the_network_as_it_was(pictures, deep, training):
    deep.train(training)
    before = copy.deepcopy(deep.state_dict())
    lesson = method_of().lesson(pictures(network=deep))
    assert lesson.head.in_features == 12
    assert deep.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in deep.state_dict().items())


def test_the_auxiliary_head_is_trained_beside_the_network(groups, compute):
    setting, _ = groups
    torch.manual_seed(0)
    lesson = method_of(pool_weight=1.0).lesson(setting)
    losses = []

    def step(at, generator):
        losses.append(lesson(at / 40, generator))
        return losses[-1]

    params = FitParams(steps=40, learning_rate=0.02)
    fit(setting.network, step, params, compute, beside=lesson)
    says = lesson.head(setting.network.body(setting.pool.clean(torch.arange(60)))).argmax(1)
    assert (says == lesson.clusters).float().mean() > 0.9
    assert losses[-1] < losses[0] / 2
    assert {"clusters", "head.weight", "head.bias"} == set(lesson.state_dict())
