import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.alignment import DECAY, Alignment


def distributions(count, classes, seed):
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), count).astype(np.float32)


def reference(shares, batches):
    """Section 3.1 of arXiv:1911.09785 as loops over rows and classes."""
    classes = len(shares)
    running, aligned = [1 / classes] * classes, []
    for batch in batches:
        for c in range(classes):
            mean = sum(float(row[c]) for row in batch) / len(batch)
            running[c] = DECAY * running[c] + (1 - DECAY) * mean
        for row in batch:
            values = [float(row[c]) * float(shares[c]) / running[c] for c in range(classes)]
            aligned.append([value / sum(values) for value in values])
    return np.array(aligned), np.array(running)


@settings(max_examples=40)
@given(
    classes=st.integers(2, 6),
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    seed=st.integers(0, 999),
)
def test_equals_the_papers_formula_batch_after_batch(classes, rows, seed):
    shares = distributions(1, classes, seed)[0]
    batches = [distributions(count, classes, seed + at) for at, count in enumerate(rows)]
    align = Alignment(torch.from_numpy(shares))
    found = np.concatenate([align(torch.from_numpy(batch)).numpy() for batch in batches])
    expected, running = reference(shares, batches)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(align.running.numpy(), running, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_guesses_that_have_the_labels_shares_come_back_as_they_are():
    guesses = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.2, 0.1, 0.7]])
    align = Alignment(torch.full((3,), 1 / 3))
    for _ in range(5):
        torch.testing.assert_close(align(guesses), guesses)


def test_a_class_guessed_too_often_is_guessed_less_in_the_long_run():
    shares = torch.tensor([0.5, 0.3, 0.2])
    align, plain = Alignment(shares), torch.tensor([[0.6, 0.1, 0.3], [0.8, 0.1, 0.1]])
    for _ in range(1000):
        found = align(plain)
    torch.testing.assert_close(align.running, plain.mean(0), atol=1e-3, rtol=1e-2)
    error = (plain.mean(0) - shares).abs().sum()
    assert (found.mean(0) - shares).abs().sum() < error / 2


def test_a_class_that_is_never_guessed_stays_finite():
    align = Alignment(torch.tensor([0.5, 0.5]))
    align.running.copy_(torch.tensor([1.0, 0.0]))  # where a long run ends
    certain = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert torch.equal(align(certain), certain)
    assert align(torch.tensor([[0.4, 0.6]]))[0, 1] > 0.9


def test_no_gradient_flows_through_a_guess():
    guesses = torch.tensor([[0.7, 0.3]], requires_grad=True)
    assert not Alignment(torch.tensor([0.4, 0.6]))(guesses).requires_grad


def test_the_given_shares_are_not_shared():
    shares = torch.tensor([0.4, 0.6])
    align = Alignment(shares)
    shares.zero_()
    assert align.shares.tolist() == pytest.approx([0.4, 0.6])


def test_the_running_mean_survives_its_state():
    batches = [torch.from_numpy(distributions(4, 3, seed)) for seed in range(6)]
    whole, first, second = (Alignment(torch.tensor([0.2, 0.3, 0.5])) for _ in range(3))
    expected = [whole(batch) for batch in batches]
    for batch in batches[:3]:
        first(batch)
    second.load_state_dict(first.state_dict())
    for batch, aligned in zip(batches[3:], expected[3:], strict=True):
        assert torch.equal(second(batch), aligned)
    assert not torch.equal(first.running, whole.running)
    assert not list(whole.parameters())
