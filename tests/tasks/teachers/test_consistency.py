import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import chisquare

from tasks.teachers.consistency import Consistency, cut_out
from tasks.teachers.supervised import Supervised

AMOUNTS = {"rotation_degrees": 10.0, "shift_share": 0.1}
SIZES = {"labelled_batch": 6, "pool_batch": 10}


def method_of(**changes):
    return Consistency(**(SIZES | {"threshold": 0.0} | changes))


@pytest.fixture
def parts(pictures, recorded, one_step):
    """One step: the pool's part of loss and gradient, the setting, and what the network saw."""

    def run(method, labels=None, **amounts):
        setting = pictures(labels, **amounts)
        with_pool, without = (
            one_step(one, setting)
            for one in (method, Supervised(labelled_batch=method.labelled_batch))
        )
        seen = recorded(setting.network)
        one_step(method, setting)
        difference = with_pool[1]["head.weight"] - without[1]["head.weight"]
        return float(with_pool[0] - without[0]), difference.numpy(), setting, seen

    return run


# The loss


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("weak", ["clean", "augmentation"])
def test_equals_equation_4(parts, threshold, weak):
    method = method_of(threshold=threshold, weak=weak, pool_weight=3.0)
    found, slopes, _, (_, (_, weakly), (strong, strongly)) = parts(method, **AMOUNTS)
    loss, expected, counted = 0.0, np.zeros((4, 64)), 0
    for row in range(10):
        q, p = (softmax(says[row].double().numpy()) for says in (weakly, strongly))
        if q.max() >= threshold:
            counted += 1
            loss -= np.log(p[q.argmax()]) / 10
            slope = p - np.eye(4)[q.argmax()]
            expected += np.outer(slope, strong[row].double().numpy().ravel()) / 10
    assert counted == 10 if not threshold else 0 < counted < 10
    assert found == pytest.approx(3 * loss, rel=1e-4)
    np.testing.assert_allclose(slopes, 3 * expected, rtol=1e-3, atol=1e-6)
    assert np.abs(slopes).max() > 1e-3


def test_the_weak_view_is_the_row_itself_and_the_strong_one_is_changed(parts):
    _, _, setting, seen = parts(method_of(cutout_share=0.5), **AMOUNTS)
    assert [len(inputs) for inputs, _ in seen] == [6, 10, 10]
    rows = setting.pool.clean(torch.arange(40)).flatten(1)
    weak, strong = (inputs.flatten(1) for inputs, _ in seen[1:])
    nearest = torch.cdist(weak, rows).argmin(dim=1)
    assert torch.equal(weak, rows[nearest])
    assert ((strong == 0).sum(dim=1) >= 4).all()  # a hole of four by four, a quarter at a corner
    assert ((strong != weak).float().mean(dim=1) > 0.5).all()


def test_the_weak_view_can_be_another_draw_of_the_augmentation(parts):
    _, _, setting, seen = parts(method_of(weak="augmentation", cutout_share=0.0), **AMOUNTS)
    rows = setting.pool.clean(torch.arange(40)).flatten(1)
    weak, strong = (inputs.flatten(1) for inputs, _ in seen[1:])
    assert (torch.cdist(weak, rows).min(dim=1).values > 0.1).all()
    assert ((strong - weak).abs().amax(dim=1) > 0.05).all()


def test_vanishes_with_its_gradient_where_no_guess_is_sure_or_nothing_weighs(parts):
    for changes in ({"threshold": 1.0}, {"pool_weight": 0.0}):
        found, slopes, *_ = parts(method_of(**changes), **AMOUNTS)
        assert found == 0
        assert not slopes.any()


def test_a_guess_as_sure_as_the_threshold_counts(pictures, one_step, linear):
    network = linear()
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    setting = pictures(network=network)
    at, above = (one_step(method_of(threshold=one), setting)[0] for one in (0.25, 0.2501))
    assert (at - above).item() == pytest.approx(np.log(4), rel=1e-5)


def test_a_guess_passes_no_gradient(pictures):
    lesson = method_of().lesson(pictures())
    guess = lesson._guess(torch.arange(5), torch.Generator())
    np.testing.assert_allclose(guess.sum(dim=1), 1, rtol=1e-5)
    assert not guess.requires_grad


def test_aligned_guesses_follow_the_labels_shares(parts):
    # All labels but one are of class 2, so every row is taken for it.
    labels = [2] * 30 + [0, *[-1] * 9]
    found, _, _, (*_, (_, strongly)) = parts(method_of(alignment=True), labels)
    p = softmax(strongly.double().numpy(), axis=1)
    assert found == pytest.approx(-np.log(p[:, 2]).mean(), rel=1e-4)
    assert parts(method_of(), labels)[0] != pytest.approx(found, rel=1e-2)


def test_one_pool_row_is_enough(pictures, one_step):
    loss, gradients = one_step(method_of(pool_batch=1), pictures([1], **AMOUNTS))
    assert torch.isfinite(loss)
    assert gradients["head.weight"].abs().sum() > 0


def test_a_step_follows_from_its_generator(pictures, one_step):
    setting = pictures(**AMOUNTS)
    first, same, other = (one_step(method_of(), setting, seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# The hole


@settings(max_examples=40)
@given(
    count=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 999),
)
def test_the_hole_is_a_square_about_a_pixel(count, height, width, share, seed):
    found = cut_out(torch.ones(count, 2, height, width), share, torch.Generator().manual_seed(seed))
    side = round(share * min(height, width))
    drawn = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
    for row in range(count):
        expected = np.ones((2, height, width), np.float32)
        top, left = (
            int(drawn[row, at] * size) - side // 2 for at, size in ((0, height), (1, width))
        )
        for y in range(max(0, top), min(height, top + side)):
            for x in range(max(0, left), min(width, left + side)):
                expected[:, y, x] = 0
        np.testing.assert_array_equal(found[row].numpy(), expected)


def test_every_pixel_is_as_often_the_middle():
    found = cut_out(torch.ones(6400, 1, 8, 8), 1 / 8, torch.Generator().manual_seed(0))
    counts = (found == 0).sum(dim=(0, 1)).flatten().numpy()
    assert counts.sum() == 6400
    assert chisquare(counts).pvalue > 0.01


def test_pixels_outside_the_hole_stay_as_they_are():
    batch = torch.rand(50, 3, 8, 8) + 0.5
    found = cut_out(batch, 0.5, torch.Generator().manual_seed(0))
    hole = (found == 0).all(dim=1, keepdim=True).expand_as(batch)
    assert torch.equal(found[~hole], batch[~hole])
    assert (hole[:, 0].sum(dim=(1, 2)) >= 4).all()
    assert (hole[:, 0].sum(dim=(1, 2)) <= 16).all()


def test_without_a_share_and_on_rows_that_are_no_images_there_is_no_hole():
    generator = torch.Generator().manual_seed(0)
    for batch, share in ((torch.rand(2, 1, 8, 8), 0.0), (torch.ones(2, 5).long(), 0.5)):
        assert cut_out(batch, share, generator) is batch


def test_memory_stays_channels_last():
    batch = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    found = cut_out(batch, 0.5, torch.Generator().manual_seed(0))
    assert found.is_contiguous(memory_format=torch.channels_last)
