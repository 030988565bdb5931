import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tasks.alignment import DECAY
from tasks.augmentations.affine import Affine
from tasks.errors import ParamsError
from tasks.teachers import Setting
from tasks.teachers.mixmatch import MixMatch, sharpen
from tasks.views import Views


@pytest.fixture
def views_of(part, compute):
    def make(pixels, labels, classes=4, **amounts):
        return Views(part(pixels, labels, classes), Affine(**amounts), compute)

    return make


@pytest.fixture
def sets(views_of):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1))
    amounts = {"rotation_degrees": 10.0, "shift_share": 0.1}
    labelled = views_of(pixels[:8], np.arange(8) % 4, **amounts)
    return {"labelled": labelled, "pool": views_of(pixels, np.full(40, -1), **amounts)}


@pytest.fixture
def single(views_of):
    """One labelled row and one pool row, so that no draw of rows matters."""
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1))
    return {"labelled": views_of(pixels[:1], [2]), "pool": views_of(pixels[1:], [-1])}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def loss(method, network, sets, share_done, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return method.lesson(Setting(network, **sets))(share_done, generator)


# Sharpening


@given(
    st.lists(st.lists(st.floats(0.05, 1), min_size=5, max_size=5), min_size=1, max_size=4),
    st.sampled_from([0.25, 0.5, 1.0, 2.0]),
)
def test_sharpening_is_equation_7(values, temperature):
    p = np.array(values) / np.sum(values, axis=1, keepdims=True)
    expected = p ** (1 / temperature)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(sharpen(torch.tensor(p), temperature).numpy(), expected, rtol=1e-9)


def test_a_low_temperature_approaches_the_largest_class_and_stays_finite():
    found = sharpen(torch.tensor([[0.1, 0.12, *[0.0975] * 8]]), 0.02)
    assert found.sum().item() == pytest.approx(1)
    assert found.argmax() == 1


def test_a_certain_guess_stays_certain():
    certain = torch.tensor([[0.0, 1.0, 0.0]])
    assert torch.equal(sharpen(certain, 0.5), certain)


# The loss


def barely_mixed(**changes):
    # Beta(a, a) with a tiny a is 0 or 1, so every row keeps itself whole.
    plain = {"mix": 1e-4, "labelled_batch": 5, "pool_batch": 6, "views": 2}
    return MixMatch(**(plain | changes))


@pytest.mark.parametrize("share_done", [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("views", [1, 3])
def test_without_mixing_it_is_cross_entropy_and_squared_error(network, single, share_done, views):
    method = barely_mixed(views=views, temperature=0.5, pool_weight=25.0, ramp_share=0.4)
    found = loss(method, network, single, share_done)
    known, unknown = (single[name].clean(torch.tensor([0])) for name in ("labelled", "pool"))
    guess = network(unknown).detach().softmax(1).double() ** 2
    guess = (guess / guess.sum()).float()
    supervised = functional.cross_entropy(network(known), torch.tensor([2]))
    consistency = (network(unknown).softmax(1) - guess).square().mean()
    expected = supervised + 25.0 * min(1.0, share_done / 0.4) * consistency
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    gradients = [torch.autograd.grad(value, network[1].weight)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_the_pool_weighs_nothing_at_the_start_of_the_ramp(network, sets):
    found = loss(MixMatch(pool_weight=1000.0), network, sets, 0.0)
    assert torch.equal(found, loss(MixMatch(pool_weight=0.0), network, sets, 0.0))
    assert loss(MixMatch(pool_weight=1000.0), network, sets, 0.01) > found


def test_the_ramp_is_linear_and_then_level(network, sets):
    method = MixMatch(ramp_share=0.5)
    start, half, full, late = (
        loss(method, network, sets, share).item() for share in (0, 0.25, 0.5, 1)
    )
    assert half - start == pytest.approx((full - start) / 2, rel=1e-4)
    assert full > start
    assert late == full


def test_a_step_follows_from_its_generator(network, sets):
    torch.manual_seed(1)
    first = loss(MixMatch(), network, sets, 0.5, seed=3)
    torch.manual_seed(2)
    assert torch.equal(loss(MixMatch(), network, sets, 0.5, seed=3), first)
    assert not torch.equal(loss(MixMatch(), network, sets, 0.5, seed=4), first)


def test_labels_of_the_pool_play_no_part(network, sets):
    before = loss(MixMatch(), network, sets, 0.5)
    sets["pool"].labels = sets["pool"].labels * 0 + 3
    assert torch.equal(loss(MixMatch(), network, sets, 0.5), before)


def test_labels_of_the_labelled_rows_do(network, sets):
    before = loss(MixMatch(), network, sets, 0.5)
    sets["labelled"].labels = (sets["labelled"].labels + 1) % 4
    assert not torch.equal(loss(MixMatch(), network, sets, 0.5), before)


def test_mixed_rows_stay_nearer_to_themselves(views_of):
    white = views_of(np.full((1, 8, 8, 1), 255), [0], classes=2)
    black = views_of(np.zeros((1, 8, 8, 1)), [-1], classes=2)
    seen = []

    class Recorder(nn.Module):
        def forward(self, inputs):
            seen.append(inputs)
            return inputs.flatten(1)[:, :2]

    method = MixMatch(labelled_batch=40, pool_batch=30, views=2, mix=0.75)
    loss(method, Recorder(), {"labelled": white, "pool": black}, 0.5)
    mixed = seen[-1].mean(dim=(1, 2, 3))
    assert len(mixed) == 40 + 2 * 30
    assert (mixed[:40] >= 0.5).all()
    assert (mixed[40:] <= 0.5).all()
    assert ((mixed > 0.05) & (mixed < 0.95)).sum() > 10


def test_mixing_weights_come_from_the_beta_distribution(views_of):
    # White rows only mix visibly with black ones: max(w, 1 - w) is known for w ~ Beta(a, a).
    pixels = np.zeros((1, 8, 8, 1))
    seen = []

    class Recorder(nn.Module):
        def forward(self, inputs):
            seen.append(inputs)
            return inputs.flatten(1)[:, :2]

    method = MixMatch(labelled_batch=3000, pool_batch=3000, views=1, mix=2.0)
    sets = {
        "labelled": views_of(pixels + 255, [0], classes=2),
        "pool": views_of(pixels, [-1], classes=2),
    }
    loss(method, Recorder(), sets, 0.5)
    mixed = seen[-1].mean(dim=(1, 2, 3))[:3000].numpy()
    changed = mixed[mixed < 1 - 1e-6]
    draws = np.random.default_rng(0).beta(2.0, 2.0, 100_000)
    expected = np.maximum(draws, 1 - draws)
    assert len(changed) == pytest.approx(1500, abs=150)
    assert changed.mean() == pytest.approx(expected.mean(), abs=0.012)
    assert changed.std() == pytest.approx(expected.std(), abs=0.012)


# What it shares with other teachers


def test_the_labelled_part_takes_adjusted_logits(network, single):
    plain, adjusted = (
        loss(barely_mixed(pool_weight=0.0, logit_adjustment=tau), network, single, 1.0)
        for tau in (0.0, 1.5)
    )
    logits = network(single["labelled"].clean(torch.tensor([0])))
    shares = torch.tensor([1, 1, 2, 1]) / 5
    target = torch.tensor([2])
    torch.testing.assert_close(plain, functional.cross_entropy(logits, target))
    expected = functional.cross_entropy(logits + 1.5 * shares.log(), target)
    torch.testing.assert_close(adjusted, expected)


def test_a_guess_is_aligned_before_it_is_sharpened(network, single):
    method = barely_mixed(views=1, alignment=True, temperature=0.5, pool_weight=25.0)
    found = loss(method, network, single, 1.0)
    labelled, pool = (single[name].clean(torch.tensor([0])) for name in ("labelled", "pool"))
    says = network(pool).softmax(1)
    running = DECAY / 4 + (1 - DECAY) * says.detach()
    guess = (says.detach() * torch.tensor([1, 1, 2, 1]) / running) ** 2
    consistency = (says - guess / guess.sum()).square().mean()
    supervised = functional.cross_entropy(network(labelled), torch.tensor([2]))
    torch.testing.assert_close(found, supervised + 25 * consistency, rtol=1e-4, atol=1e-6)
    without = barely_mixed(views=1, temperature=0.5, pool_weight=25.0)
    assert (loss(without, network, single, 1.0) - found).abs() > 1e-3


def test_tokens_are_refused_with_what_to_take_instead(tokens, bag, setting_of):
    lesson = MixMatch().lesson(setting_of(bag(), tokens[0]))
    with pytest.raises(ParamsError, match="mixmatch mixes inputs, which tokens cannot be; use"):
        lesson(0.5, torch.Generator().manual_seed(0))
