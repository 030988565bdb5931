import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from tasks.losses.soft_labels import SoftLabels


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, 5, generator=generator, dtype=torch.float64) * 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_equals_the_papers_formula(logits, pair, temperature):
    student, teacher = logits
    p = softmax(teacher.numpy() / temperature, axis=1)
    log_p = log_softmax(teacher.numpy() / temperature, axis=1)
    log_q = log_softmax(student.numpy() / temperature, axis=1)
    expected = temperature**2 * np.mean(np.sum(p * (log_p - log_q), axis=1))
    found = SoftLabels(temperature=temperature)(pair((student, teacher)))
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_gradient_is_that_of_the_formula(logits, pair):
    student, teacher = logits
    student.requires_grad_()
    SoftLabels(temperature=2.0)(pair((student, teacher))).backward()
    q, p = softmax(student.detach().numpy() / 2, axis=1), softmax(teacher.numpy() / 2, axis=1)
    np.testing.assert_allclose(student.grad.numpy(), 2.0 * (q - p) / 6, rtol=1e-7, atol=1e-12)
    assert student.grad.abs().max() > 0.01


def test_vanishes_with_its_gradient_where_the_logits_are_equal(logits, pair):
    student = logits[0].clone().requires_grad_()
    loss = SoftLabels()(pair((student, logits[0] + 4.0)))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


def test_labels_play_no_part(logits, pair):
    loss = SoftLabels()
    shown = loss(pair(tuple(logits), torch.arange(6) % 5))
    assert torch.equal(shown, loss(pair(tuple(logits))))


def test_far_apart_logits_stay_finite(pair):
    student = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = SoftLabels(temperature=1.0)(pair((student, -student.detach())))
    loss.backward()
    assert loss.item() == pytest.approx(400.0)
    assert torch.isfinite(student.grad).all()
