from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tasks.errors import ParamsError
from tasks.factorizers import FACTORIZERS, Layer, by_matrix, product, relative
from tasks.factorizers.svd import Svd

ANY = Svd(energy=0.5)


def full(layer):
    return int(ANY.options(layer).ranks.max())


def test_at_full_rank_the_smaller_layers_say_what_the_layer_says(layer, split_up, rows_for):
    batch = rows_for(layer.module)
    expected = layer.module(batch)
    smaller = split_up(ANY, layer, (full(layer),))
    assert len(smaller) == 2
    torch.testing.assert_close(smaller(batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_outputs_keep_their_shape_at_any_rank(layer, split_up, rows_for, rank):
    batch = rows_for(layer.module)
    assert split_up(ANY, layer, (rank,))(batch).shape == layer.module(batch).shape


def test_what_is_lost_is_the_tail_of_the_singular_values(layer, matrices):
    """Eckart and Young (1936), against numpy's own values."""
    squares = [np.linalg.svd(one, compute_uv=False) ** 2 for one in matrices(layer.module)]
    tails = sum(squares)[::-1].cumsum()[::-1] / np.sum(squares)
    expected = [*tails[1:], 0.0]
    assert by_matrix(layer).lost.tolist() == pytest.approx(expected, abs=1e-12)
    errors = [
        relative(layer.weight, product(ANY.split(layer, (rank,))[1])) ** 2
        for rank in range(1, full(layer) + 1)
    ]
    assert errors == pytest.approx(expected, abs=1e-12)
    assert all(more >= less for more, less in pairwise(errors))


def test_the_product_is_the_nearest_matrix_of_its_rank(layer, matrices):
    found = product(ANY.split(layer, (4,))[1])
    for one, matrix in zip(found, matrices(layer.module), strict=True):
        u, singular, v = np.linalg.svd(matrix, full_matrices=False)
        nearest = (u[:, :4] * singular[:4]) @ v[:4]
        assert one.flatten(1).numpy() == pytest.approx(nearest, abs=1e-10)


def test_costs_are_those_of_the_layers_built(layer, split_up):
    options = ANY.options(layer)
    for at in (0, 3):
        smaller = split_up(ANY, layer, tuple(options.ranks[at].tolist()))
        weights = sum(part.weight.numel() for part in smaller)
        assert int(options.parameters[at]) == weights
        assert int(options.macs[at]) == weights * layer.positions_out


# The choice of a rank


def linear(seed, outputs, inputs, spread=1.0):
    """A layer whose singular values fall."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.Linear(inputs, outputs, bias=False)
    u, s, v = torch.linalg.svd(torch.randn(outputs, inputs, generator=generator))
    falling = torch.exp(-spread * torch.arange(len(s)))
    module.weight.data = (u[:, : len(s)] * falling) @ v[: len(s)]
    return Layer("layer", module, 1, 1)


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 0.99))
def test_energy_is_kept_by_the_smallest_rank_that_keeps_it(seed, outputs, inputs, energy):
    layer = linear(seed, outputs, inputs, spread=0.2)
    squares = np.linalg.svd(layer.module.weight.detach().double().numpy(), compute_uv=False) ** 2
    needed = next(
        rank
        for rank in range(1, len(squares) + 1)
        if squares[rank:].sum() <= (1 - energy) * squares.sum()
    )
    shrinks = needed * (outputs + inputs) < outputs * inputs
    assert Svd(energy=energy, round_to=1).choose(layer) == ((needed,) if shrinks else None)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.05, 0.95), st.sampled_from([1, 4, 8]))
def test_a_budget_takes_the_largest_even_rank_that_fits(outputs, inputs, keep_ratio, round_to):
    layer = linear(0, outputs, inputs, spread=0.05)
    fits = [
        rank
        for rank in range(1, min(outputs, inputs) + 1)
        if rank * (outputs + inputs) <= keep_ratio * outputs * inputs
    ]
    expected = max((rank for rank in fits if rank % round_to == 0), default=None)
    found = Svd(keep_ratio=keep_ratio, round_to=round_to).choose(layer)
    assert found == (None if expected is None else (expected,))


def test_a_rank_is_rounded_up_and_a_layer_too_narrow_for_that_stays_whole():
    layer = linear(0, 64, 64, spread=0.2)
    (exact,) = Svd(energy=0.98, round_to=1).choose(layer)
    assert 8 < exact < 16
    assert Svd(energy=0.98, round_to=8).choose(layer) == (16,)
    narrow = linear(0, 14, 14, spread=0.2)  # from 7 on it would grow
    assert Svd(energy=0.7, round_to=1).choose(narrow) is not None
    assert Svd(energy=0.7, round_to=8).choose(narrow) is None


def test_a_weight_of_zeros_alone_is_kept_by_any_rank():
    module = nn.Linear(32, 32)
    module.weight.data.zero_()
    layer = Layer("layer", module, 1, 1)
    assert Svd(energy=0.9).choose(layer) == (8,)
    assert relative(layer.weight, product(ANY.split(layer, (8,))[1])) == 0.0


def test_a_depthwise_convolution_stays_whole():
    layer = Layer("layer", nn.Conv2d(16, 16, 3, groups=16), 64, 64)
    assert Svd(keep_ratio=0.9, round_to=1).choose(layer) is None


@pytest.mark.parametrize("rule", [{}, {"energy": 0.9, "keep_ratio": 0.5}])
def test_one_rule_has_to_be_set_and_not_both(rule):
    with pytest.raises(ParamsError, match="set energy or keep_ratio, and not both"):
        FACTORIZERS.parse({"name": "svd", **rule}, "factorize.method")


@pytest.mark.parametrize("rule", [{"energy": 1.0}, {"keep_ratio": 0.0}, {"keep_ratio": 1.0}])
def test_shares_lie_strictly_between_none_and_all(rule):
    with pytest.raises(ParamsError, match=r"factorize\.method"):
        FACTORIZERS.parse({"name": "svd", **rule}, "factorize.method")
