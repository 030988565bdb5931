"""Against NumPy, row by row."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.augmentations.crop import Crop
from tasks.errors import ParamsError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def by_hand(image, pixels, down, right, mirrored):
    padded = np.pad(image, [(0, 0), (pixels, pixels), (pixels, pixels)], mode="reflect")
    height, width = image.shape[1:]
    top, left = pixels + down, pixels + right
    cut = padded[:, top : top + height, left : left + width]
    return cut[:, :, ::-1] if mirrored else cut


@given(
    st.integers(0, 3), st.integers(4, 9), st.integers(4, 9), st.integers(1, 3), st.integers(0, 99)
)
def test_views_are_numpys(pixels, height, width, channels, seed):
    batch = torch.rand(5, channels, height, width, generator=seeded(seed))
    crop = Crop(pixels=pixels)
    parameters = crop.draw(5, seeded(seed))
    expected = [
        by_hand(image, pixels, *(int(number) for number in row))
        for image, row in zip(batch.numpy(), parameters, strict=True)
    ]
    np.testing.assert_array_equal(crop.apply(batch, parameters).numpy(), np.stack(expected))


def test_every_shift_and_both_sides_are_drawn():
    drawn = Crop(pixels=2).draw(2000, seeded())
    assert {tuple(row) for row in drawn[:, :2].int().tolist()} == {
        (down, right) for down in range(-2, 3) for right in range(-2, 3)
    }
    assert 0.45 < drawn[:, 2].mean() < 0.55


def test_without_flip_nothing_is_mirrored():
    assert not Crop(flip=False).draw(200, seeded())[:, 2].any()


def test_views_lie_channels_last():
    crop = Crop()
    views = crop.apply(torch.rand(4, 3, 8, 8), crop.draw(4, seeded()))
    assert views.is_contiguous(memory_format=torch.channels_last)


def test_a_shift_as_large_as_the_image_is_refused():
    crop = Crop(pixels=8)
    with pytest.raises(ParamsError, match=r"up to 8 pixels, but images are 8×8; .* below 8"):
        crop.apply(torch.rand(2, 1, 8, 8), crop.draw(2, seeded()))
