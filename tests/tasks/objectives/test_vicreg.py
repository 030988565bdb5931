import numpy as np
import pytest
import torch
from torch import nn

from tasks.augmentations.none import Unchanged
from tasks.errors import DataError, ParamsError
from tasks.objectives.vicreg import VICReg, covariance, variance
from tasks.sections import parse
from tasks.views import Views


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.1, 0.5, 0.9, 2.0, 1.0])
    return (torch.randn(12, 5, generator=generator) * scales).double()


def variance_by_hand(points):
    """Equations 1 and 2, dimension by dimension."""
    found = [max(0, 1 - np.sqrt(np.var(column, ddof=1) + 1e-4)) for column in points.T]
    return float(np.mean(found))


def covariance_by_hand(points):
    """Equations 3 and 4, pair by pair."""
    matrix, width = np.cov(points.T), points.shape[1]
    return sum(matrix[i, j] ** 2 for i in range(width) for j in range(width) if i != j) / width


def test_variance_equals_the_papers_formula(points):
    assert variance(points).item() == pytest.approx(variance_by_hand(points.numpy()), rel=1e-9)


def test_covariance_equals_the_papers_formula(points):
    assert covariance(points).item() == pytest.approx(covariance_by_hand(points.numpy()), rel=1e-9)


def test_variance_vanishes_where_every_dimension_spreads_by_one(points):
    spread = (points / points.std(dim=0) * 1.01).requires_grad_()
    found = variance(spread)
    found.backward()
    assert found.item() == 0
    assert (spread.grad == 0).all()


def test_variance_of_a_collapsed_batch_is_largest_with_a_finite_gradient():
    collapsed = torch.ones(6, 3, requires_grad=True)
    found = variance(collapsed)
    found.backward()
    assert found.item() == pytest.approx(1 - 0.01)
    assert collapsed.grad.isfinite().all()


def test_variance_pushes_a_narrow_dimension_apart_and_leaves_a_wide_one():
    points = torch.tensor([[-0.1, -3.0], [0.1, 3.0]], requires_grad=True)
    variance(points).backward()
    assert points.grad[0, 0] > 0 > points.grad[1, 0]
    assert (points.grad[:, 1] == 0).all()


def test_covariance_vanishes_for_dimensions_that_vary_apart():
    points = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) * 7
    assert covariance(points).item() == pytest.approx(0, abs=1e-10)
    assert covariance(points[:, :1]).item() == 0


def test_covariance_does_not_depend_on_the_mean(points):
    torch.testing.assert_close(covariance(points + 3), covariance(points))


def test_covariance_gradient_descends(points):
    points.requires_grad_()
    found = covariance(points)
    found.backward()
    moved = (points - 0.1 * points.grad).detach()
    assert covariance(moved) < found


class Seen(nn.Module):
    """A body that flattens its inputs and remembers them."""

    def forward(self, inputs):
        self.inputs = inputs
        return inputs.flatten(1)


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 2.0, 3.0)])
def test_is_the_weighted_sum_of_the_papers_terms(digits, weights):
    invariance_weight, variance_weight, covariance_weight = weights
    objective = VICReg(
        invariance_weight=invariance_weight,
        variance_weight=variance_weight,
        covariance_weight=covariance_weight,
        batch_size=20,
    )
    body = Seen()
    loss = objective.loss(body, nn.Identity(), digits, torch.Generator().manual_seed(0))
    first, second = (half.flatten(1).double().numpy() for half in body.inputs.chunk(2))
    expected = (
        invariance_weight * np.mean((first - second) ** 2)
        + variance_weight * (variance_by_hand(first) + variance_by_hand(second))
        + covariance_weight * (covariance_by_hand(first) + covariance_by_hand(second))
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_weights_are_the_papers_by_default():
    found = VICReg()
    weights = (found.invariance_weight, found.variance_weight, found.covariance_weight)
    assert weights == (25.0, 25.0, 1.0)


def test_each_term_changes_the_gradients(digits):
    names = ("invariance_weight", "variance_weight", "covariance_weight")
    found = []
    for changed in (None, *names):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
        objective = VICReg(batch_size=16, **({changed: 0.0} if changed else {}))
        loss = objective.loss(body, nn.Identity(), digits, torch.Generator().manual_seed(0))
        loss.backward()
        found.append(body[1].weight.grad)
    for without in found[1:]:
        assert not torch.allclose(found[0], without, rtol=1e-3)


def test_invariance_vanishes_where_the_views_are_alike(digits):
    same = Views(digits.part, Unchanged(), digits.compute)
    objective = VICReg(variance_weight=0, covariance_weight=0, batch_size=16)
    assert objective.loss(Seen(), nn.Identity(), same, torch.Generator()).item() == 0
    assert objective.loss(Seen(), nn.Identity(), digits, torch.Generator()).item() > 0


def test_a_batch_is_two_views_of_distinct_rows(digits):
    body = Seen()
    same = Views(digits.part, Unchanged(), digits.compute)
    VICReg(batch_size=64).loss(body, nn.Identity(), same, torch.Generator())
    first, second = body.inputs.flatten(1).chunk(2)
    assert torch.equal(first, second)
    assert len(first.unique(dim=0)) == 64


def test_training_keeps_the_features_from_collapsing(digits, learn):
    deviations = {}
    for weight in (0.0, 25.0):
        objective = VICReg(variance_weight=weight, covariance_weight=0, batch_size=64)
        learnt = learn(objective, digits)
        with torch.no_grad():
            points = learnt.heads(learnt.encoder(digits.clean(torch.arange(200))))
        deviations[weight] = points.std(dim=0).mean()
    assert deviations[0.0] < 0.5 * deviations[25.0]


def test_the_expander_is_the_papers(digits):
    expander = VICReg(expansion=40).heads(7, digits.part.encoding)
    assert expander(torch.rand(6, 7)).shape == (6, 40)
    kinds = [type(layer).__name__ for layer in expander]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]


def test_a_pool_of_one_row_is_refused(part, compute):
    alone = Views(part(np.zeros((1, 8, 8, 1)), [-1]), Unchanged(), compute)
    with pytest.raises(DataError, match="compares rows, and there are 1, expected 2 or more"):
        VICReg().loss(nn.Flatten(), nn.Identity(), alone, torch.Generator())


@pytest.mark.parametrize("wrong", [{"variance_weight": -1.0}, {"batch_size": 1}, {"expansion": 0}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        parse(VICReg, wrong)
