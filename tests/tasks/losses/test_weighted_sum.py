import pytest
import torch
from pydantic import ValidationError

from tasks.losses import LOSSES, weighted_sum
from tasks.losses.hard_labels import HardLabels
from tasks.losses.soft_labels import SoftLabels


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 4, generator=generator)
    return student, teacher, torch.tensor([0, -1, 2, -1, 3, 1])


def gradient(losses, batch):
    student = batch[0].clone().requires_grad_()
    teacher = batch[1].clone().requires_grad_()
    weighted_sum(losses, student, teacher.detach(), batch[2]).backward()
    return student.grad


def test_is_the_sum_of_weight_times_loss(batch):
    soft, hard = SoftLabels(weight=0.3), HardLabels(weight=2.0)
    expected = 0.3 * float(soft(*batch)) + 2.0 * float(hard(*batch))
    assert float(weighted_sum((soft, hard), *batch)) == pytest.approx(expected)


def test_every_loss_of_the_drawer_changes_the_students_gradients(batch):
    for name in LOSSES.methods:
        loss = LOSSES.parse({"name": name})
        alone = gradient((SoftLabels(temperature=5.0),), batch)
        both = gradient((SoftLabels(temperature=5.0), loss), batch)
        assert not torch.allclose(alone, both, atol=1e-4), name
        silent = loss.model_copy(update={"weight": 0.0})
        without = gradient((SoftLabels(temperature=5.0), silent), batch)
        torch.testing.assert_close(alone, without)


def test_gradients_add_up_with_their_weights(batch):
    soft, hard = SoftLabels(weight=0.25), HardLabels(weight=3.0)
    parts = gradient((soft,), batch) + gradient((hard,), batch)
    torch.testing.assert_close(gradient((soft, hard), batch), parts)


def test_weights_are_not_negative():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        HardLabels(weight=-1.0)
