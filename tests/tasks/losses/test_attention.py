import numpy as np
import pytest
import torch
from torch.nn import functional

from tasks.losses.attention import Attention


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def attention(activations):
    """Unit vectors of one row's channel sums of squares, by loops."""
    channels, height, width = activations.shape
    seen = np.zeros((height, width))
    for channel in range(channels):
        for y in range(height):
            for x in range(width):
                seen[y, x] += activations[channel, y, x] ** 2
    return seen


def distance(student, teacher):
    """The paper's, of one pair of attention maps of one size."""
    first, second = (seen.ravel() / np.linalg.norm(seen) for seen in (student, teacher))
    return float(((first - second) ** 2).sum())


def blocks(seen, height, width):
    """Means over equal blocks."""
    return seen.reshape(height, seen.shape[0] // height, width, -1).mean(axis=(1, 3))


def test_equals_the_papers_formula_whatever_the_channels(draw, pair):
    student = [draw(3, 2, 8, 8), draw(3, 4, 4, 4)]
    teacher = [draw(3, 5, 8, 8), draw(3, 3, 4, 4)]
    expected = [
        distance(attention(one), attention(other))
        for level in zip(student, teacher, strict=True)
        for one, other in zip(*(maps.numpy() for maps in level), strict=True)
    ]
    assert float(Attention()(pair(maps=(student, teacher)))) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_averaged_down_to_the_smaller(draw, pair, larger):
    large, small = draw(2, 3, 8, 12), draw(2, 4, 4, 3)
    maps = (large, small) if larger == "student" else (small, large)
    expected = [
        distance(blocks(attention(one), 4, 3), attention(other))
        for one, other in zip(large.numpy(), small.numpy(), strict=True)
    ]
    found = Attention()(pair(maps=tuple([side] for side in maps)))
    assert float(found) == pytest.approx(np.mean(expected))


def test_each_side_may_be_the_larger_one_way(draw, pair):
    tall, wide = draw(2, 3, 8, 2), draw(2, 4, 4, 6)
    expected = [
        distance(blocks(attention(one), 4, 2), blocks(attention(other), 4, 2))
        for one, other in zip(tall.numpy(), wide.numpy(), strict=True)
    ]
    assert float(Attention()(pair(maps=([tall], [wide])))) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(("side", "smaller"), [(7, 2), (7, 3), (5, 4), (11, 6)])
def test_sizes_that_do_not_divide_see_every_position_and_keep_even_maps_even(
    draw, pair, side, smaller
):
    teacher = torch.ones(2, 3, smaller, smaller, dtype=torch.float64)
    even = Attention()(pair(maps=([torch.ones(2, 3, side, side).double()], [teacher])))
    assert float(even) == pytest.approx(0, abs=1e-12)
    student = draw(2, 3, side, side).requires_grad_()
    Attention()(pair(maps=([student], [draw(2, 3, smaller, smaller)]))).backward()
    assert student.grad.abs().min() > 0


def test_averaging_is_adaptive_pooling_where_sizes_divide(draw, pair):
    student, teacher = draw(2, 3, 12, 12), draw(2, 3, 4, 4)
    seen = functional.adaptive_avg_pool2d(student.square().sum(1), (4, 4)).sqrt()[:, None]
    found = Attention()(pair(maps=([student], [teacher])))
    torch.testing.assert_close(found, Attention()(pair(maps=([seen], [teacher]))))


def test_maps_make_pairs_from_the_last_backwards(draw, pair):
    student = [draw(3, 2, 8, 8), draw(3, 4, 4, 4)]
    teacher = [draw(3, 2, 16, 16), draw(3, 5, 8, 8), draw(3, 3, 4, 4)]
    found = Attention()(pair(maps=(student, teacher)))
    assert torch.equal(found, Attention()(pair(maps=(student, teacher[1:]))))
    last = Attention()(pair(maps=(student[1:], teacher)))
    first = Attention()(pair(maps=(student[:1], teacher[1:2])))
    torch.testing.assert_close(found, (first + last) / 2)


def test_gradient_is_that_of_the_formula_at_every_level(draw, pair):
    student = [draw(2, 2, 6, 6).requires_grad_(), draw(2, 3, 3, 3).requires_grad_()]
    teacher = [draw(2, 4, 3, 3), draw(2, 2, 3, 3)]
    assert torch.autograd.gradcheck(
        lambda *given: Attention()(pair(maps=(given, teacher))), tuple(student)
    )
    Attention()(pair(maps=(student, teacher))).backward()
    assert all(level.grad.abs().max() > 1e-3 for level in student)


def test_vanishes_where_both_look_at_the_same_places_however_strongly(draw, pair):
    teacher = draw(2, 3, 4, 4)
    student = (-5 * teacher.flip(1)).requires_grad_()
    loss = Attention()(pair(maps=([student], [teacher])))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-9


def test_a_map_without_activations_stays_finite(draw, pair):
    student = torch.zeros(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    loss = Attention()(pair(maps=([student], [draw(2, 3, 4, 4)])))
    loss.backward()
    assert loss.item() == pytest.approx(1.0)
    assert torch.isfinite(student.grad).all()
