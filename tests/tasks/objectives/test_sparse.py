import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, rel_entr
from torch import nn

from tasks.errors import ParamsError
from tasks.networks.convnet import ConvNet
from tasks.objectives.sparse import Sparse, divergence
from tasks.sections import parse

SHARES = st.floats(0.01, 0.99)


@given(st.lists(SHARES, min_size=1, max_size=6), SHARES)
def test_divergence_equals_the_relative_entropy_of_bernoulli_variables(means, rho):
    expected = sum(rel_entr(rho, mean) + rel_entr(1 - rho, 1 - mean) for mean in means)
    found = divergence(torch.tensor(means, dtype=torch.float64), rho)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_divergence_vanishes_with_its_gradient_at_the_wanted_activation():
    means = torch.full((4,), 0.05, dtype=torch.float64, requires_grad=True)
    found = divergence(means, 0.05)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-15)
    assert means.grad.abs().max() < 1e-12


def test_divergence_pulls_each_feature_towards_the_wanted_activation():
    means = torch.tensor([0.01, 0.4], requires_grad=True)
    divergence(means, 0.1).backward()
    assert means.grad[0] < 0 < means.grad[1]


def test_features_that_are_always_on_or_off_cost_a_finite_sum():
    found = divergence(torch.tensor([0.0, 1.0]), 0.05)
    assert found.isfinite()
    assert found > 5


@pytest.fixture
def trained_alike(digits):
    """A linear body with its heads, and both as arrays."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    heads = Sparse(rho=0.2).heads(6, digits.part.encoding)
    with torch.no_grad():
        heads.bias.add_(torch.randn(6))
    return body, heads


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_equals_the_lecture_notes_formula(digits, trained_alike, weight):
    body, heads = trained_alike
    objective = Sparse(rho=0.2, sparsity_weight=weight, batch_size=9)
    loss = objective.loss(body, heads, digits, torch.Generator().manual_seed(3))

    rows = torch.randint(len(digits), (9,), generator=torch.Generator().manual_seed(3)).numpy()
    inputs = digits.part.inputs[rows].reshape(9, 64) / 255
    encode, decode = body[1], heads.decoder
    w, b, u, v, shift = (
        tensor.detach().double().numpy()
        for tensor in (encode.weight, encode.bias, decode.weight, decode.bias, heads.bias)
    )
    activations = expit(inputs @ w.T + b + shift)
    errors = [
        0.5 * np.sum((a @ u.T + v - x) ** 2) for a, x in zip(activations, inputs, strict=True)
    ]
    penalty = sum(
        0.2 * math.log(0.2 / mean) + 0.8 * math.log(0.8 / (1 - mean))
        for mean in activations.mean(axis=0)
    )
    assert loss.item() == pytest.approx(np.mean(errors) + weight * penalty, rel=1e-5)


def test_each_term_changes_the_gradients(digits, trained_alike):
    body, heads = trained_alike
    found = []
    for weight in (0.0, 1.0):
        objective = Sparse(rho=0.2, sparsity_weight=weight, batch_size=9)
        body.zero_grad()
        heads.zero_grad()
        objective.loss(body, heads, digits, torch.Generator().manual_seed(3)).backward()
        found.append((body[1].weight.grad.clone(), heads.decoder.weight.grad.clone()))
    assert not torch.allclose(found[0][0], found[1][0], rtol=0.01)
    torch.testing.assert_close(found[0][1], found[1][1])  # the penalty ends at the activations
    assert found[0][1].abs().max() > 0.01


def test_activations_of_a_relu_body_become_as_sparse_as_asked(digits, learn):
    means = {}
    for weight in (0.0, 3.0):
        objective = Sparse(sparsity_weight=weight, rho=0.1, batch_size=64)
        learnt = learn(objective, digits, ConvNet(widths=(4, 8)), steps=100, rate=2e-2)
        with torch.no_grad():
            activations, _ = learnt.heads(learnt.encoder(digits.clean(torch.arange(len(digits)))))
        means[weight] = activations.mean(dim=0)
    assert (means[3.0] - 0.1).abs().max() < 0.03
    assert (means[0.0] - 0.1).abs().max() > 0.1


def test_activations_start_near_the_wanted_one_where_features_are_zero(digits):
    heads = Sparse(rho=0.3).heads(5, digits.part.encoding)
    activations, rebuilt = heads(torch.zeros(2, 5))
    torch.testing.assert_close(activations, torch.full((2, 5), 0.3))
    assert rebuilt.shape == (2, 64)


def test_texts_are_refused_with_the_way_out(sentences):
    with pytest.raises(ParamsError, match=r"'sparse' rebuilds numbers.*use 'masked_language'"):
        Sparse().heads(8, sentences.part.encoding)


@pytest.mark.parametrize("wrong", [{"rho": 0.0}, {"rho": 1.0}, {"sparsity_weight": -1.0}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        parse(Sparse, wrong)
