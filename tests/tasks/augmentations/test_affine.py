import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.augmentations.affine import Affine

BATCH = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
IDENTITY = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]


def rows_of(*numbers):
    return torch.tensor([list(numbers)], dtype=torch.float32).repeat(len(BATCH), 1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(found, expected):
    np.testing.assert_allclose(found.numpy(), np.asarray(expected), atol=2e-5)


@pytest.mark.parametrize("side", [4, 8, 12, 32, 33])
@pytest.mark.parametrize("padding", ["zeros", "reflection"])
def test_no_amounts_change_nothing(side, padding):
    batch = torch.rand(3, 1, side, side, generator=seeded())
    affine = Affine(padding=padding)
    close(affine.apply(batch, affine.draw(3, seeded())), batch)


def test_a_quarter_turn_is_numpys():
    # Each place of the view looks up the batch at (x, y) = (-y', x').
    turned = Affine().apply(BATCH, rows_of(0, -1, 0, 1, 0, 0, 1))
    close(turned, np.rot90(BATCH.numpy(), 1, axes=(2, 3)))
    back = Affine().apply(turned, rows_of(0, 1, 0, -1, 0, 0, 1))
    close(back, BATCH)


def test_a_drawn_rotation_is_a_rotation_by_its_angle():
    drawn = Affine(rotation_degrees=90).draw(200, seeded())
    maps = drawn[:, :6].reshape(-1, 2, 3).numpy()
    np.testing.assert_allclose(
        maps[:, :, :2] @ maps[:, :, :2].transpose(0, 2, 1), [np.eye(2)] * 200, atol=1e-6
    )
    angles = np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0]))
    assert abs(angles).max() <= 90
    assert angles.min() < -60
    assert angles.max() > 60
    assert not maps[:, :, 2].any()


def test_a_mirroring_map_mirrors_left_to_right():
    close(Affine().apply(BATCH, rows_of(-1, 0, 0, 0, 1, 0, 1)), BATCH.numpy()[:, :, :, ::-1])


def test_flip_mirrors_half_of_the_views_and_leaves_the_others():
    affine = Affine(flip=True)
    batch = BATCH[:1].repeat(400, 1, 1, 1)
    views = affine.apply(batch, affine.draw(400, seeded())).numpy()
    same = np.isclose(views, batch.numpy(), atol=1e-4).all(axis=(1, 2, 3))
    mirrored = np.isclose(views, batch.numpy()[:, :, :, ::-1], atol=1e-4).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_a_shift_by_whole_pixels_moves_them_and_fills_with_black():
    moved = Affine().apply(BATCH, rows_of(1, 0, 2 * 3 / 12, 0, 1, 0, 1)).numpy()
    close(torch.tensor(moved[:, :, :, :9]), BATCH.numpy()[:, :, :, 3:])
    assert not moved[:, :, :, 9:].any()


def test_reflection_fills_with_the_mirror_image():
    moved = Affine(padding="reflection").apply(BATCH, rows_of(1, 0, 0.5, 0, 1, 0, 1)).numpy()
    close(torch.tensor(moved[:, :, :, 9:]), BATCH.numpy()[:, :, :, :-4:-1])


def test_a_map_of_twice_the_size_shows_the_middle_smaller():
    batch = torch.ones(1, 1, 8, 8)
    found = Affine().apply(batch, torch.tensor([[2.0, 0, 0, 0, 2.0, 0, 1.0]]))[0, 0].numpy()
    assert found.sum() == pytest.approx(64 / 4, rel=0.01)
    assert (found[3:5, 3:5] == 1).all()
    assert found[0, 0] == 0


@given(share=st.floats(0.01, 0.5), seed=st.integers(0, 1000))
def test_shifts_stay_within_their_share_of_the_side(share, seed):
    drawn = Affine(shift_share=share).draw(64, seeded(seed))
    shifts = drawn[:, [2, 5]] / 2  # the map's coordinates span 2
    assert shifts.abs().max() <= share + 1e-6
    assert shifts.abs().max() > share / 2
    assert torch.equal(drawn[:, [0, 1, 3, 4, 6]], torch.tensor([1.0, 0, 0, 1, 1]).expand(64, 5))


@given(amount=st.floats(0.01, 0.9), seed=st.integers(0, 1000))
def test_sizes_stay_within_their_amount(amount, seed):
    drawn = Affine(scale=amount).draw(64, seeded(seed)).double()
    sizes = 1 / drawn[:, 0]
    assert torch.equal(drawn[:, 0], drawn[:, 4])
    assert (sizes - 1).abs().max() <= amount + 1e-5
    assert (sizes - 1).abs().max() > amount / 2


@given(amount=st.floats(0.01, 0.9), seed=st.integers(0, 1000))
def test_shear_and_contrast_stay_within_their_amounts(amount, seed):
    drawn = Affine(shear=amount, contrast=amount).draw(64, seeded(seed))
    assert drawn[:, 1].abs().max() <= amount + 1e-6
    assert drawn[:, 1].abs().max() > amount / 2
    assert (drawn[:, 6] - 1).abs().max() <= amount + 1e-6
    areas = drawn[:, 0] * drawn[:, 4] - drawn[:, 1] * drawn[:, 3]
    torch.testing.assert_close(areas, torch.ones(64))


@given(
    rotation=st.floats(0, 180),
    scale=st.floats(0, 0.9),
    shear=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_every_drawn_map_keeps_an_area_within_the_scale(rotation, scale, shear, seed):
    affine = Affine(rotation_degrees=rotation, scale=scale, shear=shear, flip=True)
    drawn = affine.draw(32, seeded(seed)).double()
    sizes = (drawn[:, 0] * drawn[:, 4] - drawn[:, 1] * drawn[:, 3]).abs() ** -0.5
    assert sizes.min() >= 1 - scale - 1e-3
    assert sizes.max() <= 1 + scale + 1e-3


def test_a_draw_follows_from_its_generator_alone():
    affine = Affine(
        rotation_degrees=30, shift_share=0.1, scale=0.1, shear=0.1, flip=True, contrast=0.1
    )
    torch.manual_seed(1)
    first = affine.draw(16, seeded(3))
    torch.manual_seed(2)
    assert torch.equal(affine.draw(16, seeded(3)), first)
    assert not torch.equal(affine.draw(16, seeded(4)), first)
    assert first.dtype == torch.float32
    assert first.device.type == "cpu"


def test_contrast_stretches_about_the_mean_and_stays_in_range():
    parameters = rows_of(*IDENTITY)
    parameters[:, 6] = torch.tensor([0.5, 0.8, 1.2, 1.5])
    found = Affine(contrast=0.5).apply(BATCH, parameters).numpy()
    mean = BATCH.numpy().mean(axis=(1, 2, 3), keepdims=True)
    factor = np.array([0.5, 0.8, 1.2, 1.5]).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
        found, (mean + (BATCH.numpy() - mean) * factor).clip(0, 1), atol=1e-5
    )


def test_every_row_has_its_own_map():
    parameters = rows_of(*IDENTITY)
    parameters[2] = torch.tensor([-1.0, 0, 0, 0, 1, 0, 1])
    found = Affine().apply(BATCH, parameters).numpy()
    for at in range(4):
        expected = BATCH[at].numpy()[:, :, ::-1] if at == 2 else BATCH[at].numpy()
        np.testing.assert_allclose(found[at], expected, atol=2e-5)


def test_views_keep_full_precision_under_autocast():
    affine = Affine(rotation_degrees=30)
    drawn = affine.draw(4, seeded())
    expected = affine.apply(BATCH, drawn)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(affine.apply(BATCH, drawn), expected)


def test_a_drawn_half_turn_turns_by_half():
    parameters = rows_of(
        math.cos(math.pi), -math.sin(math.pi), 0, math.sin(math.pi), math.cos(math.pi), 0, 1
    )
    close(Affine().apply(BATCH, parameters), BATCH.numpy()[:, :, ::-1, ::-1])
