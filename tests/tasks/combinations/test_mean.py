import numpy as np
import pytest
import torch
from scipy.special import softmax

from tasks.combinations.mean import Mean

LABELS = torch.tensor([2, -1, 0, 3, -1, 1])


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 6, 4, generator=generator, dtype=torch.float64) * 3


def test_is_the_mean_of_the_probabilities(logits):
    said = softmax(logits.numpy(), axis=2)
    found = Mean()(logits, LABELS).softmax(1).numpy()
    for row in range(6):
        expected = sum(said[teacher, row] for teacher in range(3)) / 3
        np.testing.assert_allclose(found[row], expected, rtol=1e-9)


def test_constants_per_row_and_teacher_play_no_part(logits):
    moved = logits + torch.linspace(-9, 9, 18).view(3, 6, 1)
    torch.testing.assert_close(Mean()(moved, LABELS), Mean()(logits, LABELS))


def test_a_single_teacher_stays_as_it_is(logits):
    assert torch.equal(Mean()(logits[:1], LABELS), logits[0])


def test_teachers_who_agree_are_heard_as_one(logits):
    found = Mean()(logits[:1].expand(4, -1, -1), LABELS)
    torch.testing.assert_close(found.softmax(1), logits[0].softmax(1))


def test_labels_and_the_order_of_teachers_play_no_part(logits):
    found = Mean()(logits, LABELS)
    assert torch.equal(found, Mean()(logits, LABELS * 0 - 1))
    torch.testing.assert_close(found, Mean()(logits.flip(0), LABELS))


def test_far_apart_logits_stay_finite():
    logits = torch.tensor([[[900.0, -900.0]], [[-900.0, 900.0]]])
    torch.testing.assert_close(Mean()(logits, LABELS[:1]).softmax(1), torch.full((1, 2), 0.5))
