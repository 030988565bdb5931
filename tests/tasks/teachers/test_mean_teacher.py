import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from tasks.errors import ParamsError
from tasks.fit import FitParams, averaged, fit
from tasks.networks import Classifier
from tasks.teachers.mean_teacher import MeanTeacher
from tasks.teachers.supervised import Supervised

AMOUNTS = {"rotation_degrees": 10.0, "shift_share": 0.1}
SIZES = {"labelled_batch": 6, "pool_batch": 10}


def method_of(**changes):
    return MeanTeacher(**(SIZES | {"pool_weight": 10.0, "ramp_share": 0.4} | changes))


@pytest.fixture
def other(linear):
    """A linear classifier of other weights."""
    network = linear()
    with torch.no_grad():
        network.head.weight.copy_(network.head.weight.roll(1, dims=0) * 0.7)
    return network


@pytest.fixture
def parts(pictures, recorded, one_step, other):
    """One step: the pool's part of loss and gradient, and what network and average saw."""

    def run(method, share_done=1.0, average=other, **amounts):
        setting = pictures(average=average, **amounts)
        with_pool, without = (
            one_step(one, setting, share_done)
            for one in (method, Supervised(labelled_batch=method.labelled_batch))
        )
        mine, theirs = recorded(setting.network), recorded(average)
        one_step(method, setting, share_done)
        difference = with_pool[1]["head.weight"] - without[1]["head.weight"]
        return float(with_pool[0] - without[0]), difference.numpy(), mine, theirs

    return run


def ramp(share):
    """Section 3 of arXiv:1703.01780: exp(-5 (1 - t)²), then 1."""
    return math.exp(-5 * (1 - share / 0.4) ** 2) if share < 0.4 else 1.0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.4, 1.0])
@pytest.mark.parametrize("amounts", [{}, AMOUNTS])
def test_equals_the_papers_formula(parts, share, amounts):
    found, slopes, (_, (inputs, logits)), ((_, averages),) = parts(method_of(), share, **amounts)
    loss, expected = 0.0, np.zeros((4, 64))
    for row in range(10):
        p, q = (softmax(says[row].double().numpy()) for says in (logits, averages))
        loss += np.sum((p - q) ** 2) / 40
        slope = 2 * p * ((p - q) - np.sum((p - q) * p)) / 40
        expected += np.outer(slope, inputs[row].double().numpy().ravel())
    weight = 10 * ramp(share)
    assert found == pytest.approx(weight * loss, rel=1e-3, abs=1e-6)
    np.testing.assert_allclose(slopes, weight * expected, rtol=2e-3, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


def test_the_two_see_different_views_of_the_same_rows(parts):
    _, _, (_, (mine, _)), ((theirs, _),) = parts(method_of(), **AMOUNTS)
    assert (mine - theirs).flatten(1).abs().amax(dim=1).min() > 0.05
    _, _, (_, (mine, _)), ((theirs, _),) = parts(method_of())
    assert torch.equal(mine, theirs)


def test_vanishes_without_weight(parts):
    found, slopes, *_ = parts(method_of(pool_weight=0.0))
    assert found == 0
    assert not slopes.any()


def test_vanishes_with_its_gradient_while_the_average_is_the_network(parts, linear):
    found, slopes, *_ = parts(method_of(), average=linear())
    assert found == pytest.approx(0, abs=1e-12)
    assert np.abs(slopes).max() < 1e-9


def test_the_average_gets_no_gradient(pictures, one_step, other):
    one_step(method_of(), pictures(average=other))
    assert all(parameter.grad is None for parameter in other.parameters())


def test_the_averages_guesses_can_be_aligned(parts):
    found, *_, (_, (_, logits)), ((_, averages),) = parts(method_of(alignment=True))
    p, q = (softmax(says.double().numpy(), axis=1) for says in (logits, averages))
    q = q / (0.99 / 4 + 0.01 * q.mean(axis=0))  # the labels' shares are even
    q /= q.sum(axis=1, keepdims=True)
    assert found == pytest.approx(10 * np.mean((p - q) ** 2), rel=1e-3)


@pytest.fixture
def normalised():
    """Builds a classifier with batch normalisation and dropout."""

    def build(seed=0):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        return Classifier(body, 8, 4)

    return build


def test_the_average_is_asked_in_evaluation_mode_and_not_changed(pictures, one_step, normalised):
    network, average = normalised(), normalised(1)
    setting = pictures(network=network, average=average, **AMOUNTS)
    before = copy.deepcopy(average.state_dict())
    network.train()
    one_step(method_of(), setting)
    assert not any(module.training for module in average.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.state_dict().items())
    assert network.training
    assert network.body[2].num_batches_tracked == 2


def test_what_the_average_says_does_not_depend_on_the_other_rows(
    pictures, recorded, one_step, normalised
):
    average = normalised(1)
    seen = recorded(average)
    one_step(method_of(), pictures(network=normalised(), average=average))
    inputs, logits = seen[0]
    torch.testing.assert_close(average(inputs[:1]), logits[:1])


def test_it_is_no_part_of_the_lesson(pictures, other):
    lesson = method_of().lesson(pictures(average=other))
    assert not list(lesson.parameters())
    assert not lesson.state_dict()


def test_without_averaged_weights_it_is_refused_with_what_to_set(pictures):
    with pytest.raises(ParamsError, match=r"fit\.ema_decay is null; set it, for example to 0\.95"):
        method_of().lesson(pictures())


def test_in_the_loop_it_follows_the_moving_average(pictures, recorded, linear, compute):
    network = linear()
    params = FitParams(steps=5, learning_rate=0.05, ema_decay=0.5)
    average = averaged(network, params)
    setting = pictures(network=network, average=average)
    weights, averages = [], []

    def step(at, generator):
        weights.append(network.head.weight.detach().clone())
        averages.append(average.module.head.weight.clone())
        return lesson(at / 5, generator)

    lesson = method_of().lesson(setting)
    fit(network, step, params, compute, beside=lesson, average=average)
    expected = weights[1]
    assert torch.equal(averages[0], weights[0])
    for at in (1, 2, 3, 4):
        torch.testing.assert_close(averages[at], expected)
        expected = 0.5 * expected + 0.5 * weights[at + 1] if at < 4 else expected
    assert not torch.allclose(averages[4], weights[4], atol=1e-3)


def test_a_step_follows_from_its_generator(pictures, one_step, other):
    setting = pictures(average=other, **AMOUNTS)
    first, same, different = (one_step(method_of(), setting, seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, different)
