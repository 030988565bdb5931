import math

import numpy as np
import pytest
import torch
from torch import nn

from tasks.errors import DataError, ParamsError
from tasks.objectives.corruption import Corruption
from tasks.sections import parse

GROUPS = [0, 1, 1, 1, 4, 5, 5, 6]  # a column without features leaves its number out
ROWS = 40


@pytest.fixture(scope="module")
def pool(tables):
    """Every value says its row and feature: row * 100 + feature."""
    return tables(np.arange(ROWS)[:, None] * 100 + np.arange(len(GROUPS)), GROUPS)


def corrupted(pool, share=0.6, repeats=1, seed=0):
    """Where each feature of each copy comes from: (copies, features), and the rows copied."""
    index = torch.arange(ROWS).repeat(repeats)
    found = Corruption(share=share).corrupted(pool, index, torch.Generator().manual_seed(seed))
    assert torch.equal(found % 100, torch.arange(len(GROUPS)).expand(len(index), -1).float())
    return (found // 100).long(), index


@pytest.mark.parametrize(("share", "replaced"), [(0.6, 3), (0.39, 1), (0.01, 1), (0.99, 4)])
def test_the_share_of_whole_columns_comes_from_other_rows_the_rest_stays(pool, share, replaced):
    sources, index = corrupted(pool, share)
    for row, found in zip(index.tolist(), sources.tolist(), strict=True):
        columns = {group: set() for group in GROUPS}
        for group, source in zip(GROUPS, found, strict=True):
            columns[group].add(source)
        assert all(len(origins) == 1 for origins in columns.values())
        assert sum(origins != {row} for origins in columns.values()) == replaced


def test_columns_of_a_copy_come_from_different_rows_as_marginal_draws_do(pool):
    sources, index = corrupted(pool, share=0.99)
    first, last = sources[:, 0], sources[:, 4]
    both = (first != index) & (last != index)
    assert (first[both] != last[both]).float().mean() > 0.8


def test_every_other_row_gives_its_columns_equally_often(pool):
    sources, index = corrupted(pool, repeats=400)
    own = sources == index[:, None]
    counts = sources[~own].bincount(minlength=ROWS).double()
    assert (counts / counts.mean() - 1).abs().max() < 0.1
    kept = own.double().mean(dim=0)
    assert (kept - 0.4).abs().max() < 0.02


class Known(nn.Module):
    """A body that returns given features and remembers its inputs."""

    def __init__(self, features):
        super().__init__()
        self.features = nn.Parameter(features)

    def forward(self, inputs):
        self.inputs = inputs
        return self.features


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_equals_the_papers_loop_but_for_its_constant(pool, temperature):
    points = torch.randn(2 * 9, 4, generator=torch.Generator().manual_seed(1))
    objective = Corruption(temperature=temperature, batch_size=9)
    loss = objective.loss(Known(points), nn.Identity(), pool, torch.Generator())
    anchors, copies = points[:9].double().numpy(), points[9:].double().numpy()

    def similarity(i, k):
        a, b = anchors[i], copies[k]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    total = 0.0
    for i in range(9):
        others = [math.exp(similarity(i, k) / temperature) for k in range(9)]
        total -= math.log(math.exp(similarity(i, i) / temperature) / np.mean(others))
    assert loss.item() == pytest.approx(total / 9 + math.log(9), rel=1e-5)


def test_the_gradient_pulls_a_row_and_its_copy_together(pool):
    body = Known(torch.randn(16, 4, generator=torch.Generator().manual_seed(1)))
    objective = Corruption(batch_size=8)
    loss = objective.loss(body, nn.Identity(), pool, torch.Generator())
    loss.backward()
    with torch.no_grad():
        body.features -= 0.5 * body.features.grad
    assert objective.loss(body, nn.Identity(), pool, torch.Generator()) < loss


def test_rows_known_apart_from_all_copies_but_their_own_cost_next_to_nothing(pool):
    body = Known(torch.eye(8).repeat(2, 1))
    objective = Corruption(batch_size=8, temperature=0.05)
    assert objective.loss(body, nn.Identity(), pool, torch.Generator()).item() < 1e-6


def test_a_collapsed_body_costs_the_log_of_the_batch(pool):
    body = Known(torch.ones(2 * 8, 3))
    loss = Corruption(batch_size=8).loss(body, nn.Identity(), pool, torch.Generator())
    assert loss.item() == pytest.approx(math.log(8), rel=1e-6)


def test_a_batch_is_distinct_rows_as_they_are_and_their_copies(pool):
    body = Known(torch.ones(2 * 16, 3))
    Corruption(batch_size=16).loss(body, nn.Identity(), pool, torch.Generator())
    rows, copies = body.inputs.chunk(2)
    assert len((rows[:, 0] // 100).unique()) == 16
    assert (rows // 100 == rows[:, :1] // 100).all()
    assert (rows != copies).any(dim=1).all()


def test_a_pool_smaller_than_the_batch_is_used_whole(pool):
    body = Known(torch.ones(2 * ROWS, 3))
    Corruption(batch_size=256).loss(body, nn.Identity(), pool, torch.Generator())
    assert len(body.inputs) == 2 * ROWS


def test_the_projector_fits_any_width(pool):
    heads = Corruption(projection=5).heads(13, pool.part.encoding)
    assert heads(torch.rand(2, 13)).shape == (2, 5)


def test_a_pool_of_one_row_is_refused(tables):
    with pytest.raises(DataError, match="from other rows, and there are 1 rows, expected 2"):
        Corruption().loss(
            nn.Identity(), nn.Identity(), tables(np.zeros((1, 2)), [0, 1]), torch.Generator()
        )


def test_a_table_of_one_column_is_refused(tables):
    with pytest.raises(ParamsError, match="the table has one column; use 'denoising'"):
        Corruption().heads(4, tables(np.zeros((2, 3)), [0, 0, 0]).part.encoding)


def test_takes_tables_alone():
    assert Corruption.takes == "tables"


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"temperature": 0.0}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        parse(Corruption, wrong)
