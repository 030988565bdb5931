import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import pearsonr

from tasks.losses.dist import Dist


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 6, 5, generator=generator, dtype=torch.float64) * 2)


def terms(logits, temperature):
    """1 minus the mean of scipy's correlation, over rows and over columns."""
    guess, target = (softmax(side.numpy() / temperature, axis=1) for side in logits)
    rows = [pearsonr(*row).statistic for row in zip(guess, target, strict=True)]
    columns = [pearsonr(*column).statistic for column in zip(guess.T, target.T, strict=True)]
    return 1 - np.mean(rows), 1 - np.mean(columns)


def shares(*rows):
    """Logits of these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("inter", "intra", "temperature"), [(1.0, 1.0, 1.0), (2.0, 0.0, 4.0), (0.0, 0.5, 2.0)]
)
def test_equals_the_papers_formula(logits, pair, inter, intra, temperature):
    rows, columns = terms(logits, temperature)
    found = Dist(inter=inter, intra=intra, temperature=temperature)(pair(logits))
    expected = temperature**2 * (inter * rows + intra * columns)
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("inter", "intra"), [(1.0, 0.0), (0.0, 1.0)])
def test_gradient_is_that_of_the_formula_and_each_term_has_one(logits, pair, inter, intra):
    student, teacher = logits
    loss = Dist(inter=inter, intra=intra)
    assert torch.autograd.gradcheck(
        lambda given: loss(pair((given, teacher))), student.requires_grad_()
    )
    loss(pair((student, teacher))).backward()
    assert student.grad.abs().max() > 1e-3


def test_vanishes_where_probabilities_agree_up_to_scale_and_shift(logits, pair):
    teacher = logits[1]
    student = (0.6 * teacher.softmax(1) + 0.4 / 5).log().requires_grad_()
    loss = Dist()(pair((student, teacher)))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-7


def test_a_batch_of_one_row_has_its_row_alone(logits, pair):
    one = tuple(side[:1] for side in logits)
    found = Dist(inter=1.0, intra=5.0)(pair(one))
    assert torch.equal(found, Dist(inter=1.0, intra=0.0)(pair(one)))
    assert float(found) > 0.01


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_constant_column_is_left_out(pair, who):
    flat = shares((0.25, 0.5, 0.25), (0.25, 0.3, 0.45), (0.25, 0.1, 0.65))
    other = shares((0.2, 0.5, 0.3), (0.7, 0.2, 0.1), (0.1, 0.1, 0.8))
    sides = (flat, other) if who == "student" else (other, flat)
    student = sides[0].clone().requires_grad_()
    loss = Dist(inter=0.0)(pair((student, sides[1])))
    loss.backward()
    guess, target = (side.exp().numpy() for side in sides)
    left = [pearsonr(guess[:, at], target[:, at]).statistic for at in (1, 2)]
    assert loss.item() == pytest.approx(1 - np.mean(left))
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_rows_that_are_all_alike_leave_the_row_term(logits, pair, dtype, who):
    student, teacher = (side.to(dtype) for side in logits)
    student = student[:1].expand(6, -1) if who != "teacher" else student
    teacher = teacher[:1].expand(6, -1) if who != "student" else teacher
    student = student.clone().requires_grad_()
    loss = Dist(intra=5.0)(pair((student, teacher)))
    loss.backward()
    rows = Dist(intra=0.0)(pair((student.detach(), teacher)))
    torch.testing.assert_close(loss.detach(), rows)
    assert 0 < student.grad.abs().max() < 1


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_where_nothing_varies_it_vanishes_with_its_gradient(logits, pair, value):
    student = torch.full((6, 5), value, requires_grad=True)
    loss = Dist()(pair((student, logits[1].float())))
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_many_equal_rows_do_not_vary_by_their_rounding(pair):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 10, generator=generator).repeat(5000, 1).requires_grad_()
    teacher = torch.randn(5000, 10, generator=generator)
    loss = Dist(inter=0.0)(pair((student, teacher)))
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_labels_play_no_part(logits, pair):
    assert torch.equal(Dist()(pair(logits, torch.arange(6) % 5)), Dist()(pair(logits)))
