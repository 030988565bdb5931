import numpy as np
import pytest
import torch
from torch import nn

from tasks.augmentations.none import Unchanged
from tasks.errors import ParamsError
from tasks.objectives.denoising import Denoising
from tasks.sections import parse
from tasks.views import Views


@pytest.fixture
def picture(part, compute):
    """A pool of a single colour picture, so that every batch is known."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3))
    return Views(part(pixels, [-1]), Unchanged(), compute)


def clean_values(pool):
    """The row as (C, H, W) of 0 to 1, flattened by hand."""
    return (pool.part.inputs[0].transpose(2, 0, 1) / 255).reshape(-1)


class Guess(nn.Module):
    """A body and head that guess the same for every row."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float32))
        self.seen = []

    def forward(self, inputs):
        self.seen.append(inputs)
        return self.values.expand(len(inputs), -1)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_is_the_mean_squared_error_against_the_clean_row(picture, noise):
    guess = np.random.default_rng(1).normal(size=48)
    body = Guess(guess)
    loss = Denoising(noise=noise, masked_share=0.3, batch_size=7).loss(
        body, nn.Identity(), picture, torch.Generator()
    )
    clean = clean_values(picture)
    assert loss.item() == pytest.approx(np.mean((guess - clean) ** 2), rel=1e-5)
    loss.backward()
    expected = 2 * (guess - clean) / 48
    np.testing.assert_allclose(body.values.grad.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_vanishes_where_the_clean_row_is_rebuilt(picture):
    objective = Denoising(noise=2.0, masked_share=0.5, batch_size=4)
    body = Guess(clean_values(picture))
    assert objective.loss(body, nn.Identity(), picture, torch.Generator()).item() < 1e-12
    assert (body.seen[0] - picture.clean(torch.zeros(4, dtype=torch.int64))).abs().max() > 1


@pytest.mark.parametrize("noise", [0.1, 0.7])
def test_noise_has_the_stated_deviation(noise):
    clean = torch.rand(40, 1, 30, 30, generator=torch.Generator().manual_seed(1))
    spoilt = Denoising(noise=noise).spoil(clean, torch.Generator().manual_seed(2))
    added = (spoilt - clean).flatten()
    assert added.std().item() == pytest.approx(noise, rel=0.02)
    assert abs(added.mean().item()) < noise * 0.02
    assert abs(np.corrcoef(added, clean.flatten())[0, 1]) < 0.02


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_the_stated_share_of_values_is_zero(share):
    clean = torch.ones(50, 400)
    spoilt = Denoising(noise=0.2, masked_share=share).spoil(clean, torch.Generator().manual_seed(0))
    assert (spoilt == 0).float().mean().item() == pytest.approx(share, abs=0.01)
    kept = spoilt[spoilt != 0]
    assert kept.mean().item() == pytest.approx(1, abs=0.01)


def test_with_neither_it_is_a_plain_autoencoder():
    clean = torch.rand(5, 3, 4, 4)
    assert torch.equal(Denoising(noise=0).spoil(clean, torch.Generator()), clean)


def test_rebuilds_more_of_a_digit_than_the_mean_digit(digits, learn):
    objective = Denoising(batch_size=64)
    learnt = learn(objective, digits, steps=80, rate=1e-2)
    mean_picture = (digits.part.inputs / 255).var(axis=0).mean()
    assert learnt.after < 0.8 * mean_picture


def test_texts_are_refused_with_the_way_out(sentences):
    with pytest.raises(ParamsError, match=r"'denoising' adds noise.*use 'masked_language'"):
        Denoising().heads(8, sentences.part.encoding)


@pytest.mark.parametrize(
    "wrong", [{"noise": -0.1}, {"masked_share": 1.0}, {"batch_size": 0}, {"decoder": 0}]
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        parse(Denoising, wrong)
