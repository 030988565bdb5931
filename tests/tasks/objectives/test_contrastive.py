import math

import numpy as np
import pytest
import torch
from torch import nn

from tasks.augmentations.affine import Affine
from tasks.objectives.contrastive import Contrastive, nt_xent
from tasks.runtimes.text import UNKNOWN
from tasks.views import Views


def reference(first, second, temperature):
    """Equation 1 of arXiv:2002.05709, pair by pair."""
    points = np.concatenate([first, second])
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    count, total = len(points), 0.0
    for i in range(count):
        j = (i + count // 2) % count
        others = sum(math.exp(points[i] @ points[k] / temperature) for k in range(count) if k != i)
        total -= math.log(math.exp(points[i] @ points[j] / temperature) / others)
    return total / count


@pytest.fixture
def pool(part, compute):
    inputs = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    rows = part(inputs, np.full(40, -1))
    return Views(rows, Affine(rotation_degrees=10, shift_share=0.1), compute)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_equals_the_papers_loop(count, temperature):
    first, second = np.random.default_rng(count).normal(size=(2, count, 5))
    found = nt_xent(torch.tensor(first), torch.tensor(second), temperature)
    assert float(found) == pytest.approx(reference(first, second, temperature), rel=1e-9, abs=1e-9)


def test_the_size_of_a_projection_plays_no_part():
    first, second = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).double()
    scaled = nt_xent(first * 10, second * torch.rand(6, 1).double().add(0.1), 0.5)
    torch.testing.assert_close(scaled, nt_xent(first, second, 0.5))


def test_partners_that_agree_cost_less_than_strangers():
    first = torch.eye(6)
    assert nt_xent(first, first, 0.2) < 0.1
    assert nt_xent(first, first.roll(1, 0), 0.2) > 4


def test_the_gradient_pulls_partners_together():
    first, second = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    first.requires_grad_()
    nt_xent(first, second, 0.5).backward()
    moved = (first - 0.5 * first.grad).detach()
    assert nt_xent(moved, second, 0.5) < nt_xent(first, second, 0.5)


def test_a_collapsed_body_costs_the_log_of_the_others(pool):
    objective = Contrastive(batch_size=16, temperature=0.7)
    head = nn.Linear(3, 2)
    loss = objective.loss(lambda views: torch.ones(len(views), 3), head, pool, torch.Generator())
    assert loss.item() == pytest.approx(math.log(2 * 16 - 1), rel=1e-5)


def test_a_batch_is_two_views_of_distinct_rows(pool):
    seen = []

    def body(views):
        seen.append(views)
        return views.flatten(1)

    # Rows without a view would repeat exactly: the identity shows which rows were drawn.
    pool.augmentation = Affine()
    Contrastive(batch_size=16).loss(body, nn.Identity(), pool, torch.Generator().manual_seed(0))
    (batch,) = seen
    first, second = batch.flatten(1).chunk(2)
    torch.testing.assert_close(first, second)
    assert len(torch.unique(first, dim=0)) == 16


def test_the_two_views_differ(pool):
    seen = []
    objective = Contrastive(batch_size=16)
    objective.loss(lambda v: seen.append(v) or v.flatten(1), nn.Identity(), pool, torch.Generator())
    first, second = seen[0].chunk(2)
    assert not torch.isclose(first, second, atol=1e-3).all(dim=(1, 2, 3)).any()


def test_a_pool_smaller_than_the_batch_is_used_whole(pool):
    sizes = []
    Contrastive(batch_size=256).loss(
        lambda v: sizes.append(len(v)) or v.flatten(1), nn.Identity(), pool, torch.Generator()
    )
    assert sizes == [80]


def test_a_step_follows_from_its_generator_and_reaches_body_and_heads(pool):
    objective = Contrastive(batch_size=16, projection=5)
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU())
    heads = objective.heads(12, pool.part.encoding)
    losses = [
        objective.loss(body, heads, pool, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]
    assert heads(torch.rand(3, 12)).shape == (3, 5)
    losses[0].backward()
    for parameter in [*body.parameters(), *heads.parameters()]:
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("width", [1, 7, 300])
@pytest.mark.parametrize("rows", ["digits", "cultivars", "sentences"])
def test_the_projector_fits_any_body_of_any_modality(rows, width, request):
    encoding = request.getfixturevalue(rows).part.encoding
    heads = Contrastive(projection=5).heads(width, encoding)
    assert heads(torch.rand(2, width)).shape == (2, 5)


def test_two_views_of_a_text_drop_different_tokens(thinned_sentences):
    seen = []
    objective = Contrastive(batch_size=16)
    objective.loss(
        lambda v: seen.append(v) or v.float(), nn.Identity(), thinned_sentences, torch.Generator()
    )
    first, second = seen[0].chunk(2)
    assert (first != second).any(dim=1).sum() >= 12
    agree = (first == second) | (first == UNKNOWN) | (second == UNKNOWN)
    assert agree.all()


@pytest.mark.parametrize("rows", ["cultivars", "sentences"])
def test_views_keep_the_type_that_the_modality_gives_them(rows, request):
    pool, seen = request.getfixturevalue(rows), []
    objective = Contrastive(batch_size=8)

    def body(views):
        seen.append(views)
        return views.float()

    loss = objective.loss(body, nn.Identity(), pool, torch.Generator())
    clean = pool.clean(torch.arange(1))
    assert seen[0].dtype == clean.dtype
    assert seen[0].shape == (16, *clean.shape[1:])
    assert loss.isfinite()
