import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.augmentations import AUGMENTATIONS
from tasks.augmentations.noise import Noise
from tasks.errors import ParamsError

BATCH = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_of(rows, features, seed=0):
    """What is added, (rows, features), in standard deviations."""
    noise = Noise(jitter=1.0, drop_share=0.0)
    return noise.apply(torch.zeros(rows, features), noise.draw(rows, seeded(seed))).numpy()


def hashed(number):
    """The hash once more, on Python's integers."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x2C1B3C6D), (12, 0x297A2D39)):
        number = (number ^ number >> shift) * factor % 2**32
    return number ^ number >> 15


def test_views_equal_the_formula_in_a_loop():
    noise = Noise(jitter=0.7, drop_share=0.3)
    seeds = noise.draw(6, seeded())
    expected = BATCH.double().numpy().copy()
    for row in range(6):
        for feature in range(9):
            radius, angle, chance = (
                (hashed((hashed(int(seeds[row]) + 2**24) + hashed(place)) % 2**32) + 0.5) / 2**32
                for place in (feature, 9 + feature, 18 + feature)
            )
            normal = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
            expected[row, feature] += 0.7 * normal
            expected[row, feature] *= chance >= 0.3
    np.testing.assert_allclose(noise.apply(BATCH, seeds).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_jitter_is_normal_and_independent_between_features_and_rows():
    found = noise_of(2000, 50)
    assert stats.kstest(found.ravel(), "norm").pvalue > 0.01
    for matrix in (found.T, found[:200, :]):
        correlation = np.corrcoef(matrix) - np.eye(len(matrix))
        assert np.abs(correlation).max() < 5.5 / np.sqrt(matrix.shape[1])


def test_neighbouring_seeds_have_nothing_in_common():
    noise = Noise(jitter=1.0, drop_share=0.0)
    found = noise.apply(torch.zeros(2000, 20), torch.arange(2000.0)[:, None]).numpy()
    assert stats.kstest(found.ravel(), "norm").pvalue > 0.01
    assert abs(np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1]) < 0.02


@given(jitter=st.floats(0.01, 3), seed=st.integers(0, 99))
def test_jitter_is_in_standard_deviations(jitter, seed):
    noise = Noise(jitter=jitter, drop_share=0.0)
    drawn = noise.draw(300, seeded(seed))
    found = noise.apply(torch.ones(300, 20), drawn).numpy() - 1
    assert found.std() == pytest.approx(jitter, rel=0.06)
    assert found.mean() == pytest.approx(0, abs=0.06 * jitter)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_of_the_features_is_zero_and_the_rest_is_left(share):
    noise = Noise(jitter=0.0, drop_share=share)
    batch = torch.randn(500, 40, generator=seeded(1))
    found = noise.apply(batch, noise.draw(500, seeded()))
    dropped = found == 0
    assert float(dropped.float().mean()) == pytest.approx(share, abs=0.02)
    assert dropped.float().mean(0).std() < 0.05
    assert torch.equal(found[~dropped], batch[~dropped])


def test_jitter_and_dropping_do_not_depend_on_each_other():
    drawn = Noise().draw(4000, seeded())
    ones = torch.ones(4000, 10)
    dropped = Noise(jitter=0.0, drop_share=0.5).apply(ones, drawn) == 0
    added = Noise(jitter=1.0, drop_share=0.0).apply(ones, drawn)
    assert stats.ks_2samp(added[dropped].numpy(), added[~dropped].numpy()).pvalue > 0.01


def test_no_amounts_change_nothing():
    noise = Noise(jitter=0.0, drop_share=0.0)
    assert torch.equal(noise.apply(BATCH, noise.draw(6, seeded())), BATCH)


def test_a_view_follows_from_its_rows_seed_alone():
    noise = Noise()
    drawn = noise.draw(6, seeded())
    views = noise.apply(BATCH, drawn)
    order = torch.tensor([4, 0, 5])
    torch.manual_seed(7)
    assert torch.equal(noise.apply(BATCH[order], drawn[order]), views[order])
    assert not torch.equal(noise.apply(BATCH[order], drawn[:3]), views[order])


def test_the_first_of_many_rows_is_as_alone_and_the_batch_is_left():
    noise, before = Noise(), BATCH.clone()
    drawn = noise.draw(6, seeded())
    assert torch.equal(noise.apply(BATCH[:1], drawn[:1])[0], noise.apply(BATCH, drawn)[0])
    assert torch.equal(BATCH, before)


def test_a_draw_follows_from_its_generator_alone():
    torch.manual_seed(1)
    first = Noise().draw(16, seeded(3))
    torch.manual_seed(2)
    assert torch.equal(Noise().draw(16, seeded(3)), first)
    assert not torch.equal(Noise().draw(16, seeded(4)), first)
    assert first.dtype == torch.float32
    assert first.device.type == "cpu"
    assert len(first.unique()) == 16


def test_views_keep_their_type_and_bits_under_autocast():
    noise = Noise()
    drawn = noise.draw(6, seeded())
    expected = noise.apply(BATCH, drawn)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(noise.apply(BATCH, drawn), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_views_are_the_same_on_cuda():
    noise = Noise(jitter=0.5, drop_share=0.3)
    batch = torch.randn(200, 50, generator=seeded())
    drawn = noise.draw(200, seeded())
    found = noise.apply(batch.cuda(), drawn.cuda()).cpu()
    torch.testing.assert_close(found, noise.apply(batch, drawn), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("wrong", [{"jitter": -0.1}, {"drop_share": 1.0}, {"drop_share": -0.1}])
def test_impossible_amounts_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        AUGMENTATIONS.parse({"name": "noise", **wrong})
