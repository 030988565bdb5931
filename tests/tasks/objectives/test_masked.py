import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tasks.augmentations.none import Unchanged
from tasks.errors import ParamsError
from tasks.modalities import Encoding
from tasks.modalities.images import Images
from tasks.objectives.masked import Masked, draw, pieces
from tasks.sections import parse
from tasks.views import Views

GROUPS = [0, 1, 1, 1, 4, 5, 5]  # a column without features leaves its number out


def encoding_of(side, channels):
    return Encoding(Images(), {"shape": [side, side, channels]})


def patches(side, channels, patch):
    """Patch of every value, channel by channel and row by row, counted by hand."""
    across = (side + patch - 1) // patch
    return [
        (y // patch) * across + x // patch
        for _ in range(channels)
        for y in range(side)
        for x in range(side)
    ]


@given(st.integers(1, 9), st.sampled_from([1, 3]), st.integers(1, 10))
def test_patches_lie_on_a_grid_from_the_top_left_corner(side, channels, patch):
    found = pieces(encoding_of(side, channels), patch)
    assert found.tolist() == patches(side, channels, patch)


def test_patches_end_at_the_edge_of_a_side_that_they_do_not_divide():
    grid = pieces(encoding_of(5, 1), 2).view(5, 5)
    assert grid.tolist()[0] == [0, 0, 1, 1, 2]
    assert grid.tolist()[4] == [6, 6, 7, 7, 8]
    assert grid.flatten().bincount().tolist() == [4, 4, 2, 4, 4, 2, 2, 2, 1]


def test_pieces_of_a_table_are_its_columns(tables):
    pool = tables(np.zeros((2, 7)), GROUPS)
    assert pieces(pool.part.encoding, 2).tolist() == [0, 1, 1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("share", "total", "hidden"), [(0.75, 16, 12), (0.5, 5, 2), (0.01, 8, 1), (0.99, 8, 7)]
)
def test_every_row_hides_the_rounded_share_but_never_none_nor_all(share, total, hidden):
    drawn = draw(200, total, share, torch.Generator().manual_seed(0))
    assert drawn.shape == (200, total)
    assert drawn.sum(dim=1).tolist() == [hidden] * 200


def test_every_piece_is_hidden_equally_often_and_rows_differ():
    drawn = draw(4000, 6, 0.5, torch.Generator().manual_seed(0))
    assert drawn.float().mean(dim=0).sub(0.5).abs().max() < 0.03
    assert len(drawn.unique(dim=0)) == 20  # all ways to choose 3 of 6


class Guess(nn.Module):
    """A body and head that guess the same for every row, and remember what they saw."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float32))
        self.seen = []

    def forward(self, inputs):
        self.seen.append(inputs)
        return self.values.expand(len(inputs), -1)


@pytest.fixture
def picture(part, compute):
    """A pool of a single colour picture of side 5, no value of which is zero."""
    pixels = np.random.default_rng(0).integers(1, 256, (1, 5, 5, 3))
    return Views(part(pixels, [-1]), Unchanged(), compute)


@pytest.fixture
def row(tables):
    """A pool of a single row of a table, no value of which is zero."""
    return tables(np.random.default_rng(0).uniform(1, 2, (1, 7)), GROUPS)


def by_hand(clean, guess, seen, groups):
    """Mean over hidden pieces of the mean squared error within the piece, piece by piece."""
    errors = []
    for shown in seen:
        for piece in sorted(set(groups)):
            inside = [at for at, group in enumerate(groups) if group == piece]
            if all(shown[at] == 0 for at in inside):
                errors.append(np.mean([(guess[at] - clean[at]) ** 2 for at in inside]))
            else:
                assert [shown[at] for at in inside] == [clean[at] for at in inside]
    return float(np.mean(errors)), len(errors)


@pytest.mark.parametrize("share", [0.3, 0.75])
@pytest.mark.parametrize("kind", ["picture", "row"])
def test_equals_the_error_within_hidden_pieces_and_shows_the_others(kind, share, request):
    pool = request.getfixturevalue(kind)
    groups = patches(5, 3, 2) if kind == "picture" else GROUPS
    guess = np.random.default_rng(1).normal(size=len(groups))
    body = Guess(guess)
    objective = Masked(patch=2, masked_share=share, batch_size=11)
    loss = objective.loss(body, nn.Identity(), pool, torch.Generator().manual_seed(0))
    clean = pool.clean(torch.zeros(1, dtype=torch.int64)).flatten().tolist()
    expected, hidden = by_hand(clean, guess, body.seen[0].flatten(1).tolist(), groups)
    assert hidden == 11 * round(share * len(set(groups)))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_what_is_seen_costs_nothing_and_has_no_gradient(picture):
    body = Guess(np.full(75, 5.0))
    objective = Masked(patch=2, masked_share=0.5, batch_size=1)
    objective.loss(body, nn.Identity(), picture, torch.Generator()).backward()
    seen = body.seen[0].flatten() != 0
    assert 0 < seen.sum() < 75
    assert (body.values.grad[seen] == 0).all()
    assert (body.values.grad[~seen] > 0).all()


def test_vanishes_where_the_hidden_is_rebuilt(picture):
    clean = picture.clean(torch.zeros(1, dtype=torch.int64)).flatten()
    loss = Masked(batch_size=3).loss(
        Guess(clean.tolist()), nn.Identity(), picture, torch.Generator()
    )
    assert loss.item() < 1e-12


def test_a_piece_counts_once_however_many_values_it_has(tables):
    pool = tables(np.ones((1, 5)), [0, 1, 1, 1, 1])
    guess = Guess([3.0, 1.0, 1.0, 1.0, 1.0])
    objective = Masked(masked_share=0.5, batch_size=400)
    loss = objective.loss(guess, nn.Identity(), pool, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(4 * 0.5, rel=0.15)


@pytest.mark.parametrize("patch", [8, 9])
def test_a_patch_as_large_as_the_picture_is_refused(digits, patch):
    with pytest.raises(ParamsError, match=r"shape \(8, 8, 1\) are one piece.*smaller 'patch'"):
        Masked(patch=patch).heads(4, digits.part.encoding)


def test_a_table_of_one_column_is_refused(tables):
    with pytest.raises(ParamsError, match=r"are one piece each.*'denoising'"):
        Masked().heads(4, tables(np.zeros((2, 3)), [0, 0, 0]).part.encoding)


def test_texts_are_refused_with_the_way_out(sentences):
    with pytest.raises(ParamsError, match=r"'masked' rebuilds numbers.*use 'masked_language'"):
        Masked().heads(8, sentences.part.encoding)


@pytest.mark.parametrize("wrong", [{"masked_share": 0.0}, {"masked_share": 1.0}, {"patch": 0}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        parse(Masked, wrong)
