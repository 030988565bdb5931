import itertools

import numpy as np
import pytest
import torch

from tasks.errors import ParamsError
from tasks.losses.relations import Relations


@pytest.fixture
def features():
    """Seven rows, one of them an outlier, so that both branches of the Huber loss are met."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    teacher = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    teacher[2] *= 40
    return student, teacher


def huber(gap):
    return gap**2 / 2 if abs(gap) <= 1 else abs(gap) - 0.5


def distances(points):
    pairs = list(itertools.permutations(range(len(points)), 2))
    far = {(i, j): np.linalg.norm(points[i] - points[j]) for i, j in pairs}
    return {ij: distance / np.mean(list(far.values())) for ij, distance in far.items()}


def cosines(points):
    found = {}
    for i, j, k in itertools.permutations(range(len(points)), 3):
        one, other = points[i] - points[j], points[k] - points[j]
        found[i, j, k] = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    return found


def mean_huber(relation, features):
    student, teacher = (relation(side.numpy()) for side in features)
    return np.mean([huber(student[at] - teacher[at]) for at in student])


@pytest.mark.parametrize("weights", [(25.0, 50.0), (2.0, 0.0), (0.0, 3.0)])
def test_equals_the_papers_formula_over_pairs_and_triples(features, pair, weights):
    expected = weights[0] * mean_huber(distances, features)
    expected += weights[1] * mean_huber(cosines, features)
    loss = Relations(distance_weight=weights[0], angle_weight=weights[1])
    assert float(loss(pair(features=features))) == pytest.approx(expected, rel=1e-9)


def test_both_branches_of_the_huber_loss_are_met(features):
    for relation in (distances, cosines):
        student, teacher = (relation(side.numpy()) for side in features)
        gaps = [abs(student[at] - teacher[at]) for at in student]
        assert min(gaps) < 1 < max(gaps)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_gradient_is_that_of_the_formula_and_each_term_has_one(features, pair, weights):
    student, teacher = features
    loss = Relations(distance_weight=weights[0], angle_weight=weights[1])
    assert torch.autograd.gradcheck(
        lambda given: loss(pair(features=(given, teacher))), student.requires_grad_()
    )
    loss(pair(features=(student, teacher))).backward()
    assert student.grad.abs().max() > 1e-3


def test_vanishes_where_the_student_is_the_teacher_turned_moved_and_scaled(features, pair):
    teacher = features[1]
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))
    student = (3 * teacher @ turn.double() + 7).requires_grad_()
    loss = Relations()(pair(features=(student, teacher)))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("who", [0, 1])
def test_equal_rows_are_safe_and_have_no_angles(features, pair, dtype, who):
    sides = [side.to(dtype).clone() for side in features]
    sides[who][3] = sides[who][5]
    student = sides[0].requires_grad_()
    loss = Relations()(pair(features=(student, sides[1])))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < 1e3
    assert student.grad.abs().max() > 1e-3


@pytest.mark.parametrize("shift", [0.0, 1e-7, 1e-6])
def test_rows_apart_by_rounding_alone_get_no_huge_gradient(features, pair, shift):
    student, teacher = (side.float().clone() for side in features)
    student[3] = student[5] + shift
    student.requires_grad_()
    Relations(distance_weight=0.0)(pair(features=(student, teacher))).backward()
    assert student.grad.abs().max() < 100


def test_a_collapsed_student_stays_finite(features, pair):
    student = torch.ones(7, 3, requires_grad=True)
    loss = Relations()(pair(features=(student, features[1].float())))
    loss.backward()
    student_far, teacher_far = 0.0, distances(features[1].numpy())
    teacher_angles = cosines(features[1].numpy())
    expected = 25 * np.mean([huber(student_far - far) for far in teacher_far.values()])
    expected += 50 * np.mean([huber(cosine) for cosine in teacher_angles.values()])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert not student.grad.any()


@pytest.mark.parametrize("count", [1, 2])
def test_one_row_or_two_have_nothing_to_compare(features, pair, count):
    student = features[0][:count].clone().requires_grad_()
    loss = Relations()(pair(features=(student, features[1][:count])))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


def test_in_single_precision_it_is_the_same(features, pair):
    wide = Relations()(pair(features=features))
    narrow = Relations()(pair(features=tuple(side.float() + 10 for side in features)))
    assert narrow.item() == pytest.approx(wide.item(), rel=1e-4)


@pytest.mark.parametrize("lacking", [0, 1])
def test_models_without_features_are_refused(features, pair, lacking):
    given = [*features]
    given[lacking] = None
    logits = torch.zeros(7, 2), torch.zeros(7, 2)
    with pytest.raises(ParamsError, match=r"relations.*features.*soft_labels"):
        Relations()(pair(logits, features=given))
