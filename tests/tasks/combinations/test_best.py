import numpy as np
import pytest
import torch
from scipy.special import softmax

from tasks.combinations.best import Best

LABELS = torch.tensor([2, -1, 0, 3, -1, 1])
HIDDEN = torch.full((6,), -1)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 6, 4, generator=generator, dtype=torch.float64) * 3


def chosen(said, label):
    """The best teacher of one row, from the teachers' probabilities (K, classes)."""
    if label == -1:
        return max(range(len(said)), key=lambda teacher: said[teacher].max())
    return min(range(len(said)), key=lambda teacher: -np.log(said[teacher][label]))


@pytest.mark.parametrize("labels", [LABELS, HIDDEN])
def test_is_what_the_best_teacher_of_each_row_says(logits, labels):
    said = softmax(logits.numpy(), axis=2)
    best = [chosen(said[:, row], label) for row, label in enumerate(labels.tolist())]
    assert len(set(best)) > 1
    found = Best()(logits, labels)
    for row, teacher in enumerate(best):
        assert torch.equal(found[row], logits[teacher, row])


def test_shown_labels_change_who_is_best(logits):
    differ = (Best()(logits, LABELS) != Best()(logits, HIDDEN)).any(dim=1)
    assert differ.any()
    assert not differ[LABELS == -1].any()


def test_a_constant_does_not_make_a_teacher_more_confident(logits):
    shift = torch.tensor([50.0, -50.0, 0.0])[:, None, None]
    found = Best()(logits + shift, LABELS).softmax(1)
    torch.testing.assert_close(found, Best()(logits, LABELS).softmax(1))


def test_a_teacher_who_is_sure_and_wrong_is_heard_only_where_the_label_is_hidden():
    logits = torch.tensor([[[20.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    assert torch.equal(Best()(logits, torch.tensor([1])), logits[1])
    assert torch.equal(Best()(logits, torch.tensor([-1])), logits[0])


@pytest.mark.parametrize("labels", [LABELS, HIDDEN])
def test_a_single_teacher_stays_as_it_is(logits, labels):
    assert torch.equal(Best()(logits[:1], labels), logits[0])


def test_the_first_of_equals_is_heard():
    logits = torch.tensor([[[3.0, 0.0]], [[0.0, 3.0]]])
    assert torch.equal(Best()(logits, torch.tensor([-1])), logits[0])
    assert torch.equal(Best()(logits.flip(0), torch.tensor([-1])), logits[1])
