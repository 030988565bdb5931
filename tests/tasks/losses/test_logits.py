import numpy as np
import pytest
import torch

from tasks.losses.logits import Logits
from tasks.losses.soft_labels import SoftLabels


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 6, 5, generator=generator, dtype=torch.float64) * 3)


@pytest.mark.parametrize("centred", [True, False])
def test_equals_a_loop_over_rows_and_classes(logits, pair, centred):
    squares = []
    for guess, target in zip(*(side.numpy() for side in logits), strict=True):
        shift = (np.mean(guess), np.mean(target)) if centred else (0, 0)
        squares += [(g - shift[0] - t + shift[1]) ** 2 for g, t in zip(guess, target, strict=True)]
    found = Logits(centred=centred)(pair(logits))
    assert float(found) == pytest.approx(np.mean(squares), rel=1e-9)


def test_gradient_is_that_of_the_formula(logits, pair):
    student, teacher = logits
    student.requires_grad_()
    Logits()(pair((student, teacher))).backward()
    gap = (student - teacher).detach().numpy()
    expected = 2 * (gap - gap.mean(axis=1, keepdims=True)) / gap.size
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-7, atol=1e-12)
    assert student.grad.abs().max() > 0.01


def test_a_constant_per_row_counts_only_where_rows_are_not_centred(logits, pair):
    student, teacher = logits
    shift = torch.linspace(-4, 9, 6, dtype=torch.float64)[:, None]
    moved = pair((student, teacher + shift))
    torch.testing.assert_close(Logits()(moved), Logits()(pair(logits)))
    raw = Logits(centred=False)
    assert float(raw(moved)) > float(raw(pair(logits))) + 1
    assert float(raw(pair((teacher + shift, teacher)))) == pytest.approx(float((shift**2).mean()))


def test_vanishes_with_its_gradient_where_the_logits_say_the_same(logits, pair):
    student = logits[0].clone().requires_grad_()
    loss = Logits()(pair((student, logits[0] + 4.0)))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


def test_half_of_it_is_the_limit_of_soft_labels_at_high_temperature(logits, pair):
    soft = SoftLabels(temperature=1e4)(pair(logits))
    assert float(soft) == pytest.approx(float(Logits()(pair(logits))) / 2, rel=1e-3)


def test_labels_play_no_part(logits, pair):
    assert torch.equal(Logits()(pair(logits, torch.arange(6) % 5)), Logits()(pair(logits)))
