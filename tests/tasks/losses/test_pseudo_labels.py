import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import log_loss

from tasks.losses.hard_labels import HardLabels
from tasks.losses.pseudo_labels import PseudoLabels

# The teacher is sure of rows 0, 1, 4 and 5, and wrong on row 1, whose label is shown.
SURE = torch.tensor([True, True, False, False, True, True])
GUESS = torch.tensor([2, 0, 1, 3, 0, 3])
LABELS = torch.tensor([-1, 1, 2, -1, -1, 3])


@pytest.fixture
def student():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator, dtype=torch.float64)


@pytest.fixture
def teacher():
    share = torch.where(SURE, 0.97, 0.6).double()[:, None]
    mine = torch.nn.functional.one_hot(GUESS, 4)
    return (mine * share + (1 - mine) * (1 - share) / 3).log() - 2.0


def expected(student, targets):
    """Mean cross entropy over the rows with a target."""
    rows = [at for at, target in enumerate(targets) if target is not None]
    chosen = [targets[at] for at in rows]
    return log_loss(chosen, student[rows].softmax(1).numpy(), labels=range(4))


def test_shown_labels_and_sure_guesses_are_the_targets(student, teacher, pair):
    found = PseudoLabels()(pair((student, teacher), LABELS))
    assert float(found) == pytest.approx(expected(student, [2, 1, 2, None, 0, 3]))


def test_without_shown_labels_the_guesses_alone_are(student, teacher, pair):
    loss = PseudoLabels(use_shown=False)
    found = loss(pair((student, teacher), LABELS))
    assert float(found) == pytest.approx(expected(student, [2, 0, None, None, 0, 3]))
    assert torch.equal(found, loss(pair((student, teacher))))


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 6), (0.5, 6), (0.9, 4), (0.99, 0)])
def test_the_threshold_decides_which_guesses_count(student, teacher, pair, threshold, count):
    student.requires_grad_()
    PseudoLabels(threshold=threshold, use_shown=False)(pair((student, teacher))).backward()
    assert int(student.grad.any(dim=1).sum()) == count


def test_a_guess_must_exceed_the_threshold(student, pair):
    teacher = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    given = pair((student[:1], teacher))
    assert PseudoLabels(threshold=0.5)(given) == 0
    assert PseudoLabels(threshold=0.4999)(given) > 0


def test_gradient_is_that_of_the_formula_and_rows_without_target_get_none(student, teacher, pair):
    student.requires_grad_()
    PseudoLabels()(pair((student, teacher), LABELS)).backward()
    targets = torch.tensor([2, 1, 2, 0, 0, 3])
    wanted = (student.detach().softmax(1) - torch.eye(4)[targets]) / 5
    wanted[3] = 0
    np.testing.assert_allclose(student.grad.numpy(), wanted.numpy(), rtol=1e-7, atol=1e-12)


def test_vanishes_with_its_gradient_where_no_row_has_a_target(student, teacher, pair):
    student.requires_grad_()
    loss = PseudoLabels(threshold=0.98)(pair((student, teacher)))
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_beside_hard_labels_it_is_the_joint_loss_of_a_transfer(student, teacher, pair):
    given = pair((student, teacher), LABELS)
    joint = HardLabels()(given) + 0.5 * PseudoLabels(use_shown=False)(given)
    known = expected(student, [None, 1, 2, None, None, 3])
    guessed = expected(student, [2, 0, None, None, 0, 3])
    assert float(joint) == pytest.approx(known + 0.5 * guessed)


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_a_threshold_that_nothing_or_all_exceed_by_definition_is_refused(threshold):
    with pytest.raises(ValidationError, match="threshold"):
        PseudoLabels(threshold=threshold)
