import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from tasks.losses.decoupled import Decoupled
from tasks.losses.soft_labels import SoftLabels

LABELS = torch.tensor([3, -1, 0, -1, 4, 2])


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 6, 5, generator=generator, dtype=torch.float64) * 3)


def parts(student, teacher, target, temperature):
    """TCKD and NCKD of one row, as the paper defines them."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    tckd = p[target] * np.log(p[target] / q[target])
    tckd += (1 - p[target]) * np.log((1 - p[target]) / (1 - q[target]))
    nckd = 0.0
    for other in range(len(p)):
        if other != target:
            among_p, among_q = p[other] / (1 - p[target]), q[other] / (1 - q[target])
            nckd += among_p * np.log(among_p / among_q)
    return tckd, nckd


@pytest.mark.parametrize(
    ("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.5, 0.0, 1.0), (0.0, 2.0, 2.0)]
)
def test_equals_the_papers_formula_row_by_row(logits, pair, alpha, beta, temperature):
    student, teacher = (side.numpy() for side in logits)
    total = 0.0
    for at, label in enumerate(LABELS.tolist()):
        target = int(teacher[at].argmax()) if label == -1 else label
        tckd, nckd = parts(student[at], teacher[at], target, temperature)
        total += alpha * tckd + beta * nckd
    found = Decoupled(alpha=alpha, beta=beta, temperature=temperature)(pair(logits, LABELS))
    assert float(found) == pytest.approx(temperature**2 * total / 6, rel=1e-9)


@given(
    st.lists(st.floats(-8, 8), min_size=3, max_size=6).flatmap(
        lambda found: st.tuples(st.just(found), st.permutations(found))
    ),
    st.floats(0.5, 8),
    st.data(),
)
def test_of_one_row_is_soft_labels_where_beta_is_1_minus_the_targets_share(
    pair, rows, temperature, data
):
    target = data.draw(st.integers(0, len(rows[0]) - 1))
    student, teacher = (torch.tensor([row], dtype=torch.float64) for row in rows)
    student = student * 0.7 + 0.3
    beta = 1 - float((teacher / temperature).softmax(1)[0, target])
    given = pair((student, teacher), torch.tensor([target]))
    found = Decoupled(alpha=1.0, beta=max(0.0, beta), temperature=temperature)(given)
    expected = SoftLabels(temperature=temperature)(given)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_of_rows_with_equally_sure_teachers_is_soft_labels(logits, pair):
    """The paper's KD = TCKD + (1 - p_t) · NCKD, with the same p_t in every row."""
    teacher = torch.tensor([3.0, 1.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    teacher = torch.stack([teacher.roll(shift) for shift in range(5)])
    given = pair((logits[0][:5], teacher), torch.arange(5))
    beta = 1 - float(teacher[0].softmax(0)[0])
    found = Decoupled(alpha=1.0, beta=beta, temperature=1.0)(given)
    torch.testing.assert_close(found, SoftLabels(temperature=1.0)(given))


def test_gradient_is_that_of_the_formula(logits, pair):
    student, teacher = logits
    assert torch.autograd.gradcheck(
        lambda given: Decoupled()(pair((given, teacher), LABELS)), student.requires_grad_()
    )


def test_both_parts_change_the_gradients_each_in_its_own_direction(logits, pair):
    target = torch.arange(6) % 5
    mine = torch.nn.functional.one_hot(target, 5).bool()
    gradients = {}
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0)):
        student = logits[0].clone().requires_grad_()
        Decoupled(alpha=alpha, beta=beta)(pair((student, logits[1]), target)).backward()
        gradients[alpha] = student.grad
    assert gradients[1.0][mine].abs().min() > 1e-3
    assert gradients[0.0][mine].abs().max() < 1e-12
    assert gradients[0.0][~mine].abs().max() > 1e-3
    # The target-class part moves all other classes together, in proportion to their shares.
    others = (logits[0] / 4).masked_fill(mine, -torch.inf).softmax(1)
    ratio = (gradients[1.0] / others)[~mine].view(6, 4)
    torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, 4))


def test_among_two_classes_only_the_target_part_is_left(logits, pair):
    given = pair(tuple(side[:, :2] for side in logits), LABELS.clamp_max(1))
    found = Decoupled(beta=8.0, temperature=2.0)(given)
    assert torch.equal(found, Decoupled(beta=0.0, temperature=2.0)(given))
    torch.testing.assert_close(found, SoftLabels(temperature=2.0)(given))


def test_a_hidden_label_stands_for_the_teachers_class(logits, pair):
    guessed = logits[1].argmax(1)
    found = Decoupled()(pair(logits))
    assert torch.equal(found, Decoupled()(pair(logits, guessed)))
    assert not torch.isclose(found, Decoupled()(pair(logits, (guessed + 1) % 5)), rtol=0.01)


def test_vanishes_with_its_gradient_where_the_logits_say_the_same(logits, pair):
    student = logits[0].clone().requires_grad_()
    loss = Decoupled()(pair((student, logits[0] + 4.0), LABELS))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


def test_far_apart_logits_stay_finite(pair):
    student = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    loss = Decoupled(beta=1.0, temperature=1.0)(pair((student, -student.detach())))
    loss.backward()
    # The teacher is sure of class 1, 600 below the student's; among the others it prefers class 2.
    assert loss.item() == pytest.approx(600.0 + 300.0)
    assert torch.isfinite(student.grad).all()
