"""What holds for every objective, on real rows."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from tasks.augmentations.affine import Affine
from tasks.networks import Network, Spec
from tasks.networks.convnet import ConvNet
from tasks.networks.mlp import Mlp
from tasks.networks.ngrams import NGrams
from tasks.networks.resnet import ResNet
from tasks.networks.text_cnn import TextCNN
from tasks.networks.text_transformer import TextTransformer
from tasks.objectives import OBJECTIVES, Objective
from tasks.objectives.contrastive import Contrastive
from tasks.objectives.corruption import Corruption
from tasks.objectives.denoising import Denoising
from tasks.objectives.masked import Masked
from tasks.objectives.masked_language import MaskedLanguage
from tasks.objectives.sparse import Sparse
from tasks.objectives.vicreg import VICReg
from tasks.views import Views


class Case(NamedTuple):
    """An objective, the rows and the body it learns with, and what 40 steps leave of its loss."""

    objective: Objective
    pool: str
    network: Network
    left: float


CONVNET, TRANSFORMER = ConvNet(widths=(8, 16)), TextTransformer(width=32, layers=1)
DENSE = Mlp(widths=(32,))
CASES = [
    Case(Contrastive(batch_size=64), "digits", CONVNET, 0.8),
    Case(Contrastive(batch_size=64, temperature=0.5), "noisy_cultivars", DENSE, 0.95),
    Case(Contrastive(batch_size=64, temperature=0.5), "thinned_sentences", TRANSFORMER, 0.95),
    Case(Corruption(batch_size=64), "numbers", DENSE, 0.97),
    Case(Corruption(batch_size=64), "cultivars", DENSE, 0.97),
    Case(Denoising(batch_size=64), "digits", CONVNET, 0.75),
    Case(Denoising(batch_size=64, masked_share=0.2), "cultivars", DENSE, 0.9),
    Case(Masked(batch_size=64), "digits", ResNet(widths=(8, 16)), 0.75),
    Case(Masked(batch_size=64), "cultivars", DENSE, 0.95),
    Case(MaskedLanguage(batch_size=64), "sentences", TRANSFORMER, 0.9),
    Case(MaskedLanguage(batch_size=64), "sentences", TextCNN(width=16, widths=(32,)), 0.9),
    Case(MaskedLanguage(batch_size=64), "sentences", NGrams(), 0.95),
    Case(Sparse(batch_size=64), "digits", CONVNET, 0.75),
    Case(Sparse(batch_size=64), "cultivars", DENSE, 0.9),
    Case(VICReg(batch_size=64), "digits", CONVNET, 0.75),
]


@pytest.fixture(params=CASES, ids=lambda c: f"{c.objective.plain()['name']}-{c.pool}")
def case(request):
    return request.param


@pytest.fixture
def pool(case, request):
    return request.getfixturevalue(case.pool)


def fresh(case, pool):
    torch.manual_seed(0)
    spec = Spec(network=case.network, shape=pool.part.encoding.input_shape, outputs=0)
    return spec.build(), case.objective.heads(spec.width, pool.part.encoding)


def test_every_objective_is_tried_on_real_digits_where_it_takes_any_rows():
    tried = {case.objective.plain()["name"] for case in CASES}
    assert tried == set(OBJECTIVES.methods)
    on_digits = {type(case.objective) for case in CASES if case.pool in {"digits", "numbers"}}
    assert on_digits == {*OBJECTIVES.methods.values()} - {MaskedLanguage}


def test_a_short_training_lowers_the_loss_and_moves_the_whole_body(case, pool, learn):
    learnt = learn(case.objective, pool, case.network)
    assert learnt.after < case.left * learnt.before
    assert learnt.moved


def test_labels_play_no_part(case, pool, learn, unlabelled):
    shown = learn(case.objective, pool, case.network, steps=2).last
    hidden = learn(case.objective, unlabelled(pool), case.network, steps=2).last
    assert all(torch.equal(shown[name], hidden[name]) for name in shown)


def test_a_step_follows_from_its_generator_and_reaches_body_and_heads(case, pool):
    encoder, heads = fresh(case, pool)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)  # for dropout within the body
        generator = torch.Generator().manual_seed(seed)
        losses.append(case.objective.loss(encoder, heads, pool, generator))
    assert losses[0] == losses[1] != losses[2]
    assert losses[0].shape == ()
    losses[0].backward()
    for parameter in [*encoder.parameters(), *heads.parameters()]:
        assert parameter.grad.abs().max() > 0


def test_in_mixed_precision_the_loss_is_full_and_near(case, pool):
    losses = []
    for enabled in (False, True):
        encoder, heads = fresh(case, pool)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(case.objective.loss(encoder, heads, pool, torch.Generator()))
    assert losses[1].dtype == torch.float32
    losses[1].backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05)


def test_what_heads_say_in_half_precision_is_reckoned_in_full(case, pool):
    encoder, heads = fresh(case, pool)
    losses = []
    for dtype in (torch.bfloat16, torch.float32):

        def rounded(features, dtype=dtype):
            found = heads(features)
            if isinstance(found, tuple):
                return found[0], found[1].bfloat16().to(dtype)
            return found.bfloat16().to(dtype)

        torch.manual_seed(0)  # for dropout within the body
        losses.append(case.objective.loss(encoder, rounded, pool, torch.Generator()))
    assert losses[0].dtype == torch.float32
    assert losses[0] == losses[1]


@pytest.mark.parametrize("objective", [Denoising(masked_share=0.1), Masked(), Sparse(), VICReg()])
def test_pictures_reach_the_body_in_the_layout_that_convolutions_want(objective, part, compute):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3))
    pool, seen = Views(part(pixels, [-1] * 6), Affine(), compute), []

    def body(inputs):
        seen.append(inputs)
        return inputs.flatten(1)

    heads = objective.heads(192, pool.part.encoding)
    objective.loss(body, heads, pool, torch.Generator())
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_it_goes_into_a_spec_and_back(case):
    plain = case.objective.plain()
    assert OBJECTIVES.parse(plain) == case.objective
