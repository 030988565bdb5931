import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from tasks.alignment import DECAY
from tasks.teachers.pseudo_labels import PseudoLabels
from tasks.teachers.supervised import Supervised

AMOUNTS = {"rotation_degrees": 10.0, "shift_share": 0.1}
SIZES = {"labelled_batch": 6, "pool_batch": 10}


def method_of(**changes):
    return PseudoLabels(**(SIZES | {"threshold": 0.0, "ramp_share": 0.4} | changes))


def by_hand(logits, inputs, threshold, weigh=lambda p: p):
    """The pool's term and its gradient by the head's weights, row by row; and which rows count."""
    loss, slopes, counted = 0.0, np.zeros((4, 64)), []
    guesses = weigh(softmax(logits.double().numpy(), axis=1))
    for row, guess in enumerate(guesses):
        counted.append(guess.max() >= threshold)
        if counted[-1]:
            p = softmax(logits[row].double().numpy())
            loss -= np.log(p[guess.argmax()]) / len(guesses)
            slope = p - np.eye(4)[guess.argmax()]
            slopes += np.outer(slope, inputs[row].double().numpy().ravel()) / len(guesses)
    return loss, slopes, counted


@pytest.fixture
def parts(pictures, recorded, one_step):
    """One step: the pool's part of loss and gradient, and what the network saw of the pool."""

    def run(method, share_done=1.0, labels=None, **amounts):
        setting = pictures(labels, **amounts)
        with_pool, without = (
            one_step(one, setting, share_done)
            for one in (method, Supervised(labelled_batch=method.labelled_batch))
        )
        seen = recorded(setting.network)
        one_step(method, setting, share_done)
        difference = with_pool[1]["head.weight"] - without[1]["head.weight"]
        return float(with_pool[0] - without[0]), difference.numpy(), seen

    return run


@pytest.mark.parametrize("threshold", [0.0, 0.45, 0.6])
@pytest.mark.parametrize("amounts", [{}, AMOUNTS])
def test_equals_the_papers_formula(parts, threshold, amounts):
    found, slopes, (_, (inputs, logits)) = parts(
        method_of(threshold=threshold, pool_weight=2.0), **amounts
    )
    loss, expected, counted = by_hand(logits, inputs, threshold)
    assert sum(counted) == 10 if not threshold else 0 < sum(counted) < 10
    assert found == pytest.approx(2 * loss, rel=1e-4)
    np.testing.assert_allclose(slopes, 2 * expected, rtol=1e-3, atol=1e-6)
    assert np.abs(slopes).max() > 1e-3


def test_a_step_looks_at_the_labelled_rows_and_at_one_view_of_pool_rows(parts):
    seen = parts(method_of())[2]
    assert [len(inputs) for inputs, _ in seen] == [6, 10]


def test_vanishes_with_its_gradient_where_no_guess_is_sure(parts):
    found, slopes, (_, (_, logits)) = parts(method_of(threshold=1.0))
    assert logits.softmax(1).max() < 1
    assert found == 0
    assert not slopes.any()


def test_a_guess_as_sure_as_the_threshold_counts(pictures, one_step, linear):
    network = linear()
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    setting = pictures(network=network)
    at, above = (one_step(method_of(threshold=one), setting)[0] for one in (0.25, 0.2501))
    assert (at - above).item() == pytest.approx(np.log(4), rel=1e-5)


def test_vanishes_without_weight_and_at_the_start_of_the_ramp(parts):
    for method, share in ((method_of(pool_weight=0.0), 1.0), (method_of(), 0.0)):
        found, slopes, _ = parts(method, share)
        assert found == 0
        assert not slopes.any()


def test_the_ramp_is_linear_and_then_level(parts):
    start, half, full, late = (parts(method_of(), share)[0] for share in (0, 0.2, 0.4, 1))
    assert start == 0
    assert half == pytest.approx(full / 2, rel=1e-3)
    assert late == full > 0


def test_guesses_are_aligned_before_their_sureness_is_measured(parts):
    # 30 labels of class 2 and one of class 0, each counted once more; a running mean of one step.
    shares = np.array([2, 1, 31, 1]) / 35

    def aligned(p):
        raw = p * shares / (DECAY / 4 + (1 - DECAY) * p.mean(axis=0))
        return raw / raw.sum(axis=1, keepdims=True)

    labels = [2] * 30 + [0, *[-1] * 9]
    found, slopes, (_, (inputs, logits)) = parts(
        method_of(alignment=True, threshold=0.8), labels=labels
    )
    loss, expected, counted = by_hand(logits, inputs, 0.8, aligned)
    assert 0 < sum(counted) < 10
    assert found == pytest.approx(loss, rel=1e-4)
    np.testing.assert_allclose(slopes, expected, rtol=1e-3, atol=1e-6)


def test_alignment_turns_guesses_towards_the_labels_shares(pictures, one_step):
    # All labels but one are of class 2: so are the guesses, whatever the network says.
    setting = pictures([2] * 30 + [0, *[-1] * 9])
    torch.manual_seed(0)
    lesson = method_of(alignment=True).lesson(setting)
    found = lesson.align(torch.full((5, 4), 0.25))
    np.testing.assert_allclose(found[0], np.array([2, 1, 31, 1]) / 35, rtol=1e-5)


@settings(max_examples=40)
@given(threshold=st.floats(0, 1), step=st.floats(0, 0.3))
def test_a_higher_threshold_never_counts_more(one_step, pictures_once, threshold, step):
    loose, strict = (
        float(one_step(method_of(threshold=at), pictures_once)[0])
        for at in (threshold, min(1.0, threshold + step))
    )
    assert strict <= loose + 1e-6


@pytest.fixture(scope="module")
def pictures_once(part, compute, linear, setting_of):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1))
    return setting_of(linear(), part(pixels, [0, 1, 2, 3, *[-1] * 36], 4))


def test_one_pool_row_is_enough(pictures, one_step):
    loss, gradients = one_step(method_of(pool_batch=1), pictures([1]))
    assert torch.isfinite(loss)
    assert gradients["head.weight"].abs().sum() > 0


def test_a_step_follows_from_its_generator(pictures, one_step):
    setting = pictures(**AMOUNTS)
    first, same, other = (one_step(method_of(), setting, seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
