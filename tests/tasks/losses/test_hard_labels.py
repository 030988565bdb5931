import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from tasks.losses.hard_labels import HardLabels


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator, dtype=torch.float64)


def test_is_the_mean_over_the_shown_labels(logits, pair):
    labels = torch.tensor([2, -1, 0, 3, -1, 1])
    shown = labels >= 0
    expected = log_loss(labels[shown], logits[shown].softmax(1).numpy(), labels=range(4))
    assert float(HardLabels()(pair((logits, logits), labels))) == pytest.approx(expected)


def test_hidden_rows_get_no_gradient(logits, pair):
    labels = torch.tensor([2, -1, 0, 3, -1, 1])
    logits.requires_grad_()
    HardLabels()(pair((logits, logits.detach()), labels)).backward()
    shown = labels >= 0
    expected = (logits.detach().softmax(1) - torch.eye(4)[labels.clamp_min(0)])[shown] / 4
    np.testing.assert_allclose(logits.grad[shown].numpy(), expected.numpy(), rtol=1e-7)
    assert not logits.grad[~shown].any()


def test_vanishes_where_no_label_is_shown(logits, pair):
    logits.requires_grad_()
    loss = HardLabels()(pair((logits, logits.detach()), torch.full((6,), -1)))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_the_teacher_plays_no_part(logits, pair):
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    first = HardLabels()(pair((logits, logits), labels))
    assert torch.equal(first, HardLabels()(pair((logits, logits * 0 - 9), labels)))
