from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.factorizers import Layer, product, relative
from tasks.factorizers.svd import Svd
from tasks.factorizers.tucker import Tucker

ANY = Tucker(energy=0.5)


def full(layer):
    """The largest ranks."""
    ranks = ANY.options(layer).ranks
    return tuple(ranks[ranks.prod(1).argmax()].tolist())


def convolution(seed, outputs=24, inputs=16, taps=3, **options):
    torch.manual_seed(seed)
    module = nn.Conv2d(inputs, outputs, taps, padding=taps // 2, **options)
    return Layer("layer", module.eval(), 64, 64)


def error(method, layer, ranks):
    return relative(layer.weight, product(method.split(layer, ranks)[1]))


def naive(weight, read, written, rounds):
    """Tucker-2 of (outputs, inputs, taps) by HOSVD and HOOI, an unfolding at a time."""
    outputs, _, taps = weight.shape

    def leading(matrix, rank):
        values, vectors = np.linalg.eigh(matrix @ matrix.T)
        return vectors[:, np.argsort(values)[::-1][:rank]]

    def by_inputs(tensor):
        return np.concatenate([tensor[at] for at in range(len(tensor))], axis=1)

    inner, outer = leading(by_inputs(weight), read), leading(weight.reshape(outputs, -1), written)
    for _ in range(rounds):
        part = np.stack([weight[:, :, at] @ inner for at in range(taps)], axis=2)
        outer = leading(part.reshape(outputs, -1), written)
        part = np.stack([outer.T @ weight[:, :, at] for at in range(taps)], axis=2)
        inner = leading(by_inputs(part), read)
    return np.stack(
        [outer @ (outer.T @ weight[:, :, at] @ inner) @ inner.T for at in range(taps)], axis=2
    )


def test_at_full_rank_the_smaller_layers_say_what_the_layer_says(layer, split_up, rows_for):
    batch = rows_for(layer.module)
    expected = layer.module(batch)
    taps = layer.weight.shape[3]
    smaller = split_up(ANY, layer, full(layer))
    assert len(smaller) == (2 if taps == 1 else 3)
    torch.testing.assert_close(smaller(batch), expected, rtol=1e-4, atol=1e-5)


def test_costs_are_those_of_the_layers_built(layer, split_up):
    options = ANY.options(layer)
    for at in (0, len(options.ranks) // 2, -1):
        *before, kernel, last = split_up(ANY, layer, tuple(options.ranks[at].tolist()))
        weights = [sum(one.weight.numel() for one in parts) for parts in (before, (kernel, last))]
        assert int(options.parameters[at]) == sum(weights)
        places = weights[0] * layer.positions_in + weights[1] * layer.positions_out
        assert int(options.macs[at]) == places


@pytest.mark.parametrize("rounds", [0, 1, 5])
@pytest.mark.parametrize("ranks", [(4, 6), (8, 8), (2, 16), (16, 24)])
def test_it_is_the_naive_decomposition(rounds, ranks):
    layer = convolution(3)
    found = product(Tucker(energy=0.5, iterations=rounds).split(layer, ranks)[1])[0].numpy()
    expected = naive(layer.weight[0].numpy(), *ranks, rounds)
    assert found == pytest.approx(expected, abs=1e-8)


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 16))
def test_iterations_never_make_the_error_larger_and_the_bound_holds(seed, read, written):
    layer = convolution(seed, 16, 12)
    options = ANY.options(layer)
    here = (options.ranks == torch.tensor([read, written])).all(1)
    if not here.any():
        assert read > 9 * written or written > 9 * read
        return
    errors = [error(Tucker(energy=0.5, iterations=at), layer, (read, written)) for at in (0, 1, 5)]
    assert errors[2] <= errors[1] + 1e-12
    assert errors[1] <= errors[0] + 1e-12
    assert errors[0] ** 2 <= float(options.lost[here]) + 1e-12


def test_more_ranks_err_less():
    layer = convolution(0)
    errors = [error(ANY, layer, (at, at)) for at in range(1, 17)]
    assert all(more >= less for more, less in pairwise(errors))


@settings(max_examples=30)
@given(st.integers(0, 99), st.floats(0.05, 0.9))
def test_the_energy_asked_for_is_kept(seed, energy):
    layer = convolution(seed, 48, 32)
    # A weight that has something to save: noise on few directions.
    with torch.no_grad():
        layer.module.weight.copy_(
            0.05 * layer.module.weight
            + torch.einsum("or,rikl->oikl", torch.randn(48, 4), torch.randn(4, 32, 3, 3))
        )
    ranks = Tucker(energy=energy, round_to=1).choose(layer)
    assert ranks is not None
    assert 1 - error(ANY, layer, ranks) ** 2 >= energy


@pytest.mark.parametrize("keep_ratio", [0.2, 0.5, 0.8])
def test_a_budget_is_kept_with_even_ranks_at_the_least_loss(keep_ratio):
    layer = convolution(1, 64, 32)
    read, written = Tucker(keep_ratio=keep_ratio).choose(layer)
    options = ANY.options(layer)
    limit = keep_ratio * layer.module.weight.numel()

    def cost(first, second):
        return 32 * first + 9 * first * second + 64 * second

    assert cost(read, written) <= limit
    even = [(a, b) for a in range(8, 33, 8) for b in range(8, 65, 8) if cost(a, b) <= limit]
    pairs = zip(options.ranks.tolist(), options.lost.tolist(), strict=True)
    lost = {tuple(ranks): share for ranks, share in pairs}
    assert lost[read, written] == min(lost[pair] for pair in even)


def test_layers_of_one_tap_are_split_by_svd():
    for module in (nn.Linear(32, 32), nn.Conv2d(32, 32, 1)):
        layer = Layer("layer", module, 4, 4)
        assert Tucker(keep_ratio=0.5).choose(layer) == Svd(keep_ratio=0.5).choose(layer)
        mine, theirs = (method.split(layer, (8,)) for method in (ANY, Svd(energy=0.5)))
        assert mine[0] == theirs[0]
        assert all(torch.equal(*pair) for pair in zip(mine[1], theirs[1], strict=True))


def test_the_1x1_before_the_kernel_is_counted_on_the_larger_map():
    module = nn.Conv2d(32, 32, 3, stride=4, padding=1)
    strided = Tucker(keep_ratio=0.8).choose(Layer("layer", module, 16 * 64, 64))
    plain = Tucker(keep_ratio=0.8).choose(Layer("layer", module, 64, 64))
    assert strided[0] == 8  # 16 of them cost as much as the whole layer
    assert plain[0] > 8
