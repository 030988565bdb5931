import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import nn

from tasks.errors import ParamsError
from tasks.networks import Classifier
from tasks.networks.text_cnn import TextCNN
from tasks.objectives.masked_language import MaskedLanguage, choose, hide
from tasks.runtimes.text import MASK, PAD, UNKNOWN
from tasks.sections import parse

VOCABULARY = 50


@pytest.fixture(scope="module")
def many():
    """2,000 rows of 40 ordinary tokens, and all of them chosen."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(MASK + 1, VOCABULARY, (2000, 40), generator=generator)
    return ids, torch.ones_like(ids, dtype=torch.bool)


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.sampled_from([0.05, 0.15, 0.5, 0.9]),
    st.integers(0, 99),
)
def test_the_rounded_share_of_each_text_is_chosen_at_least_one_and_never_pad(lengths, share, seed):
    ids = torch.full((len(lengths), 20), PAD)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = 7
    chosen = choose(ids, share, torch.Generator().manual_seed(seed))
    expected = [max(1, round(length * share)) for length in lengths]
    assert chosen.sum(dim=1).tolist() == expected
    assert not chosen[ids == PAD].any()


def test_pad_amid_a_text_is_not_chosen():
    ids = torch.tensor([[PAD, 5, PAD, 6, UNKNOWN, PAD]])
    found = torch.stack([choose(ids, 0.34, torch.Generator().manual_seed(at)) for at in range(50)])
    assert found.any(dim=0).tolist() == [[False, True, False, True, True, False]]
    assert (found.sum(dim=2) == 1).all()


def test_every_place_is_chosen_equally_often():
    chosen = choose(torch.full((6000, 10), 9), 0.2, torch.Generator().manual_seed(0))
    assert chosen.float().mean(dim=0).sub(0.2).abs().max() < 0.02


def test_a_row_without_tokens_chooses_nothing():
    ids = torch.tensor([[PAD, PAD, PAD], [4, 5, PAD]])
    assert choose(ids, 0.15, torch.Generator()).sum(dim=1).tolist() == [0, 1]


def test_of_the_chosen_eighty_in_a_hundred_are_masked_ten_replaced_ten_left(many):
    ids, chosen = many
    shown = hide(ids, chosen, VOCABULARY, torch.Generator().manual_seed(1))
    masked, left = shown == MASK, shown == ids
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.01)
    # A replacement hits the token itself once in as many times as there are ordinary tokens.
    ordinary = VOCABULARY - MASK - 1
    assert left.float().mean().item() == pytest.approx(0.1 + 0.1 / ordinary, abs=0.01)
    replaced = shown[~masked & ~left]
    assert replaced.unique().tolist() == list(range(MASK + 1, VOCABULARY))
    counts = replaced.bincount()[MASK + 1 :].double()
    assert (counts / counts.mean() - 1).abs().max() < 0.25


def test_tokens_that_are_not_chosen_stay(many):
    ids, chosen = many
    chosen = chosen & (torch.arange(40) % 2 == 0)
    shown = hide(ids, chosen, VOCABULARY, torch.Generator().manual_seed(1))
    assert torch.equal(shown[~chosen], ids[~chosen])
    assert (shown[chosen] != ids[chosen]).float().mean() > 0.85


class Scores(nn.Module):
    """Token features that are logits already: what is shown does not change them."""

    def __init__(self, length, vocabulary):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.scores = nn.Parameter(torch.randn(length, vocabulary, generator=generator))
        self.shown = []

    def tokens(self, ids):
        self.shown.append(ids)
        return self.scores.expand(len(ids), -1, -1)


def test_is_the_cross_entropy_of_the_true_tokens_at_the_chosen_places_only(sentences):
    length, vocabulary = sentences.part.encoding.input_shape
    body = Scores(length, vocabulary)
    objective = MaskedLanguage(batch_size=12, share=0.3)
    loss = objective.loss(
        Classifier(body, vocabulary, 0), nn.Identity(), sentences, torch.Generator().manual_seed(4)
    )
    loss.backward()

    generator = torch.Generator().manual_seed(4)
    rows = torch.randint(len(sentences), (12,), generator=generator)
    ids = torch.from_numpy(sentences.part.inputs[rows.numpy()]).long()
    chosen = choose(ids, 0.3, generator)
    logs = log_softmax(body.scores.detach().numpy(), axis=1)
    costs = [-logs[at, ids[row, at]] for row, at in chosen.nonzero().tolist()]
    assert loss.item() == pytest.approx(np.mean(costs), rel=1e-5)
    never = ~chosen.any(dim=0)
    assert (body.scores.grad[never] == 0).all()
    assert (body.scores.grad[~never].abs().amax(dim=1) > 0).all()
    (shown,) = body.shown
    assert torch.equal(shown[~chosen], ids[~chosen])
    assert (shown[chosen] == MASK).any()


def test_vanishes_where_the_true_tokens_are_certain(sentences):
    _, vocabulary = sentences.part.encoding.input_shape
    objective = MaskedLanguage(batch_size=6)
    ids = sentences.clean(torch.randint(len(sentences), (6,), generator=torch.Generator()))

    class Knows(nn.Module):
        def tokens(self, shown):
            return nn.functional.one_hot(ids, vocabulary) * 50.0

    network = Classifier(Knows(), vocabulary, 0)
    loss = objective.loss(network, nn.Identity(), sentences, torch.Generator())
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_a_head_that_knows_nothing_costs_the_log_of_the_vocabulary(sentences):
    length, vocabulary = sentences.part.encoding.input_shape
    heads = MaskedLanguage().heads(8, sentences.part.encoding)
    nn.init.zeros_(heads.weight)
    nn.init.zeros_(heads.bias)
    network = Classifier(Scores(length, 8), 8, 0)
    loss = MaskedLanguage().loss(network, heads, sentences, torch.Generator())
    assert loss.item() == pytest.approx(math.log(vocabulary), rel=1e-5)


def test_texts_of_nothing_but_pad_cost_nothing(sentences, compute):
    class Empty:
        part = sentences.part

        def sample(self, count, generator):
            return torch.zeros(count, dtype=torch.int64)

        def clean(self, index):
            return torch.full((len(index), 32), PAD)

    length, vocabulary = sentences.part.encoding.input_shape
    network = Classifier(Scores(length, vocabulary), vocabulary, 0)
    loss = MaskedLanguage().loss(network, nn.Identity(), Empty(), torch.Generator())
    loss.backward()
    assert loss.item() == 0


def test_a_body_learns_from_the_context_what_frequencies_do_not_say(sentences, learn):
    objective = MaskedLanguage(batch_size=64)
    learnt = learn(objective, sentences, TextCNN(width=32, widths=(64,)), steps=60, rate=1e-2)
    ids = sentences.part.inputs[sentences.part.inputs != PAD]
    shares = np.bincount(ids) / len(ids)
    entropy = -sum(share * math.log(share) for share in shares[shares > 0])
    assert learnt.after < 0.9 * entropy


def test_takes_texts_alone():
    assert MaskedLanguage.takes == "text"


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"batch_size": 0}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        parse(MaskedLanguage, wrong)
