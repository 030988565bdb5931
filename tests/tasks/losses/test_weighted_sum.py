from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tasks.losses import Loss, weighted_sum
from tasks.losses.hard_labels import HardLabels
from tasks.losses.hints import Hints
from tasks.losses.soft_labels import SoftLabels
from tasks.networks import Outputs


@pytest.fixture
def batch(pair):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 4, generator=generator)
    return pair((student, teacher), torch.tensor([0, -1, 2, -1, 3, 1]))


def gradient(losses, batch):
    student = batch.student.logits.clone().requires_grad_()
    given = replace(batch, student=Outputs(student))
    weighted_sum(losses, [given for _ in losses]).backward()
    return student.grad


def test_is_the_sum_of_weight_times_loss(batch):
    soft, hard = SoftLabels(weight=0.3), HardLabels(weight=2.0)
    expected = 0.3 * float(soft(batch)) + 2.0 * float(hard(batch))
    assert float(weighted_sum((soft, hard), (batch, batch))) == pytest.approx(expected)


def test_gradients_add_up_with_their_weights(batch):
    soft, hard = SoftLabels(weight=0.25), HardLabels(weight=3.0)
    parts = gradient((soft,), batch) + gradient((hard,), batch)
    torch.testing.assert_close(gradient((soft, hard), batch), parts)


def test_every_loss_is_asked_about_its_own_pair(pair):
    generator = torch.Generator().manual_seed(0)
    features = tuple(torch.randn(2, 6, 4, generator=generator))
    narrow, wide = (torch.nn.Linear(4, 4) for _ in range(2))
    pairs = [pair(features=features, head=head) for head in (narrow, wide)]
    losses = Hints(weight=0.5), Hints(weight=2.0)
    expected = 0.5 * losses[0](pairs[0]) + 2.0 * losses[1](pairs[1])
    torch.testing.assert_close(weighted_sum(losses, pairs), expected)
    swapped = weighted_sum(losses, reversed(pairs))
    assert not torch.isclose(swapped, expected, rtol=1e-3)


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_pairs_as_losses_are_needed(batch, count):
    with pytest.raises(ValueError, match="zip"):
        weighted_sum((SoftLabels(), HardLabels()), [batch] * count)


def test_weights_are_not_negative():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        HardLabels(weight=-1.0)


def test_a_loss_weighs_1_unless_told_otherwise():
    assert Loss.model_fields["weight"].default == 1.0
