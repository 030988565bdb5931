import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import chisquare

from tasks.rows import HIDDEN
from tasks.teachers import Setting
from tasks.teachers.supervised import Supervised
from tasks.views import Views

AMOUNTS = {"rotation_degrees": 10.0, "shift_share": 0.1}


def drawn(method, setting, count=300):
    """Class numbers of the labelled rows that many steps draw."""
    generator = torch.Generator().manual_seed(0)
    index = torch.cat([method.draw(setting.labelled, generator) for _ in range(count)])
    return index, setting.labelled.labels[index]


# The loss


def test_is_the_mean_cross_entropy_of_the_rows_it_draws(pictures, recorded, one_step):
    setting = pictures(**AMOUNTS)
    seen = recorded(setting.network)
    method = Supervised(labelled_batch=9)
    found, _ = one_step(method, setting)
    ((inputs, logits),) = seen
    index = method.draw(setting.labelled, torch.Generator().manual_seed(0))
    labels = setting.labelled.labels[index].numpy()
    expected = -log_softmax(logits.double().numpy(), axis=1)[np.arange(9), labels].mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert inputs.shape == (9, 1, 8, 8)
    assert not torch.allclose(inputs, setting.labelled.clean(index), atol=0.05)


def test_its_gradient_is_that_of_the_formula(pictures, recorded, one_step):
    setting = pictures()
    seen = recorded(setting.network)
    method = Supervised(labelled_batch=7)
    _, gradients = one_step(method, setting)
    inputs, logits = seen[0]
    index = method.draw(setting.labelled, torch.Generator().manual_seed(0))
    truth = np.eye(4)[setting.labelled.labels[index].numpy()]
    p = np.exp(log_softmax(logits.double().numpy(), axis=1))
    expected = (p - truth).T @ inputs.flatten(1).double().numpy() / 7
    np.testing.assert_allclose(gradients["head.weight"], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected).max() > 0.01


def test_the_pool_plays_no_part(pictures, one_step):
    setting = pictures(**AMOUNTS)
    before = one_step(Supervised(), setting)[0]
    setting.pool.inputs = 255 - setting.pool.inputs
    setting.pool.labels = setting.pool.labels * 0
    assert torch.equal(one_step(Supervised(), setting)[0], before)


def test_labels_do(pictures, one_step):
    setting = pictures()
    before = one_step(Supervised(), setting)[0]
    setting.labelled.labels = (setting.labelled.labels + 1) % 4
    assert not torch.equal(one_step(Supervised(), setting)[0], before)


def test_the_share_of_steps_done_plays_no_part(pictures, one_step):
    first, last = (one_step(Supervised(), pictures(), share)[0] for share in (0.0, 1.0))
    assert torch.equal(first, last)


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_one_labelled_row_is_enough(pictures, one_step, sampling):
    setting = pictures([3, HIDDEN])
    method = Supervised(labelled_batch=5, sampling=sampling, logit_adjustment=1.0)
    loss, gradients = one_step(method, setting)
    assert torch.isfinite(loss)
    assert gradients["head.weight"][3].abs().sum() > 0


# Sampling


LABELS = [0] * 20 + [1] * 5 + [3] + [HIDDEN] * 4  # nothing of class 2


def test_balanced_draws_make_every_class_that_there_is_equally_likely(pictures):
    method = Supervised(labelled_batch=20, sampling="balanced")
    index, labels = drawn(method, pictures(LABELS))
    counts = np.bincount(labels, minlength=4)
    assert counts[2] == 0
    assert chisquare(counts[[0, 1, 3]]).pvalue > 0.01
    # Within a class, every row is.
    assert chisquare(np.bincount(index[labels == 0], minlength=20)).pvalue > 0.01


def test_uniform_draws_make_every_row_equally_likely(pictures):
    index, labels = drawn(Supervised(labelled_batch=20), pictures(LABELS))
    assert chisquare(np.bincount(index, minlength=26)).pvalue > 0.01
    assert (labels == 0).float().mean() == pytest.approx(20 / 26, abs=0.02)


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_draws_follow_from_their_generator(pictures, sampling):
    method, labelled = Supervised(sampling=sampling), pictures(LABELS).labelled
    first, same, other = (
        method.draw(labelled, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (64,)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# Logit adjustment


def test_class_shares_count_one_label_more_of_each_class(pictures):
    setting = pictures(LABELS)
    assert setting.shares.tolist() == pytest.approx([21 / 30, 6 / 30, 1 / 30, 2 / 30])
    assert setting.classes == 4


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_adjusted_losses_are_equation_10(pictures, recorded, one_step, tau):
    setting = pictures(LABELS)
    seen = recorded(setting.network)
    method = Supervised(labelled_batch=11, logit_adjustment=tau)
    found, gradients = one_step(method, setting)
    inputs, logits = (tensor.double().numpy() for tensor in seen[0])
    index = method.draw(setting.labelled, torch.Generator().manual_seed(0))
    labels = setting.labelled.labels[index].numpy()
    shares = np.array([21, 6, 1, 2]) / 30
    losses, slopes = [], np.zeros((4, 64))
    for row, (says, label) in enumerate(zip(logits, labels, strict=True)):
        # -log( π_y^τ exp f_y / Σ π_c^τ exp f_c )
        mass = shares**tau * np.exp(says)
        losses.append(-np.log(mass[label] / mass.sum()))
        slopes += np.outer(mass / mass.sum() - np.eye(4)[label], inputs[row].ravel()) / 11
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)
    np.testing.assert_allclose(gradients["head.weight"], slopes, rtol=1e-4, atol=1e-6)


def test_without_adjustment_logits_stay_as_they_are(pictures):
    logits = torch.randn(3, 4)
    assert Supervised(logit_adjustment=0.0).adjusted(logits, pictures(LABELS)) is logits


def test_equal_shares_adjust_nothing(pictures, one_step):
    plain = one_step(Supervised(), pictures())[0]
    torch.testing.assert_close(one_step(Supervised(logit_adjustment=1.0), pictures())[0], plain)


def test_a_rare_class_is_pushed_further(pictures):
    # At equal logits, its rows have the larger loss, so that their margin must grow.
    logits, setting = torch.zeros(2, 4), pictures(LABELS)
    labels = torch.tensor([0, 3])
    adjusted = Supervised(logit_adjustment=1.0).adjusted(logits, setting)
    common, rare = torch.nn.functional.cross_entropy(adjusted, labels, reduction="none")
    assert rare > common + 1


def test_the_labelled_rows_of_another_part_count(pictures, part, compute):
    setting = pictures(LABELS)
    other = part(np.zeros((3, 8, 8, 1)), [1, 1, 0], 2)
    views = Views(other, setting.pool.augmentation, compute)
    shares = Setting(setting.network, views, setting.pool).shares
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.6]))
