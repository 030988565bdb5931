import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from tasks.augmentations import AUGMENTATIONS
from tasks.augmentations.token_dropout import TokenDropout, evenly
from tasks.errors import ParamsError
from tasks.runtimes.text import MASK, PAD, UNKNOWN


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def texts(count, length=20, seed=0):
    """Rows of 1 to `length` tokens."""
    ids = torch.randint(3, 500, (count, length), generator=seeded(seed))
    lengths = torch.randint(1, length + 1, (count, 1), generator=seeded(seed + 1))
    return ids.masked_fill(torch.arange(length) >= lengths, PAD)


def by_hand(seed, length):
    """The hash, with Python's whole numbers."""

    def mixed(number):
        for _ in range(2):
            number = ((number ^ (number >> 16)) * 0x45D9F3B) % 2**32
        return number ^ (number >> 16)

    return [mixed((mixed(seed) + at * 0x9E3779B9) % 2**32) / 2**32 for at in range(length)]


@given(
    share=st.floats(0, 0.99),
    replacement=st.sampled_from(["unknown", "mask"]),
    seed=st.integers(0, 999),
)
def test_each_token_below_the_share_is_hidden_but_one_stays(share, replacement, seed):
    augmentation = TokenDropout(share=share, replacement=replacement)
    batch = texts(8, seed=seed)
    parameters = augmentation.draw(8, seeded(seed))
    views = augmentation.apply(batch, parameters)
    hidden = UNKNOWN if replacement == "unknown" else MASK
    for row, view, parameter in zip(batch, views, parameters, strict=True):
        chances = by_hand(int(parameter), 20)
        there = [at for at in range(20) if row[at] != PAD]
        kept = max(there, key=lambda at: chances[at])
        expected = row.clone()
        for at in there:
            if chances[at] < share and at != kept:
                expected[at] = hidden
        assert torch.equal(view, expected)
        assert (view > MASK).any()


def test_the_share_is_a_probability():
    batch = torch.full((4000, 30), 7)
    augmentation = TokenDropout(share=0.3)
    hidden = augmentation.apply(batch, augmentation.draw(4000, seeded())) == UNKNOWN
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.005)
    assert hidden.float().mean(0).numpy() == pytest.approx(np.full(30, 0.3), abs=0.035)
    together = np.corrcoef(hidden.float().numpy().T)
    assert np.abs(together - np.eye(30)).max() < 0.08


def test_chances_are_even_and_unlike_from_row_to_row():
    found = evenly(torch.arange(3000)[:, None], 24).numpy()
    assert found.min() >= 0
    assert found.max() < 1
    assert kstest(found.ravel(), "uniform").pvalue > 0.01
    between = np.corrcoef(found[:60])
    assert np.abs(between - np.eye(60)).max() < 0.85
    assert len(np.unique(found)) > 0.999 * found.size


def test_no_share_changes_nothing():
    batch = texts(50)
    augmentation = TokenDropout(share=0.0)
    assert torch.equal(augmentation.apply(batch, augmentation.draw(50, seeded())), batch)


def test_a_view_follows_from_its_row_of_parameters_alone():
    batch, augmentation = texts(30), TokenDropout(share=0.5)
    parameters = augmentation.draw(30, seeded())
    whole = augmentation.apply(batch, parameters)
    torch.manual_seed(9)
    for at in range(30):
        alone = augmentation.apply(batch[at : at + 1], parameters[at : at + 1])
        assert torch.equal(alone[0], whole[at])


def test_more_filling_changes_no_token():
    batch, augmentation = texts(30), TokenDropout(share=0.5)
    parameters = augmentation.draw(30, seeded())
    longer = torch.nn.functional.pad(batch, (0, 5))
    found = augmentation.apply(longer, parameters)
    assert torch.equal(found[:, :20], augmentation.apply(batch, parameters))
    assert not found[:, 20:].any()


def test_the_batch_itself_stays_as_it_is():
    batch, augmentation = texts(10), TokenDropout(share=0.5)
    before = batch.clone()
    augmentation.apply(batch, augmentation.draw(10, seeded()))
    assert torch.equal(batch, before)


def test_a_draw_follows_from_its_generator_alone():
    augmentation = TokenDropout()
    torch.manual_seed(1)
    first = augmentation.draw(500, seeded(3))
    torch.manual_seed(2)
    assert torch.equal(augmentation.draw(500, seeded(3)), first)
    assert not torch.equal(augmentation.draw(500, seeded(4)), first)
    assert first.shape == (500, 1)
    assert first.dtype == torch.float32
    assert torch.equal(first, first.long().float())
    assert len(first.unique()) > 490


def test_autocast_changes_nothing():
    batch, augmentation = texts(10), TokenDropout(share=0.4)
    parameters = augmentation.draw(10, seeded())
    expected = augmentation.apply(batch, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmentation.apply(batch, parameters), expected)


@pytest.mark.parametrize("fields", [{"share": 1.0}, {"share": -0.1}, {"replacement": "gone"}])
def test_impossible_fields_are_refused(fields):
    with pytest.raises(ParamsError, match=next(iter(fields))):
        AUGMENTATIONS.parse({"name": "token_dropout", **fields})
