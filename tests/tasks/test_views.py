import numpy as np
import pytest
import torch
from torch import nn

from tasks.augmentations.affine import Affine
from tasks.augmentations.none import Unchanged
from tasks.modalities import Encoding
from tasks.modalities.images import Images
from tasks.rows import Part
from tasks.views import CLEAN_BATCH, Views, accuracy, outputs


@pytest.fixture
def noise(part):
    """A part of noisy pictures of side 8, their labels 0, 1, 2, 0 … unless stated."""

    def make(count, channels=1, labels=None):
        random = np.random.default_rng(0)
        inputs = random.integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)
        return part(inputs, np.arange(count) % 3 if labels is None else labels, classes=3)

    return make


def views_of(part, compute, **amounts):
    return Views(part, Affine(**amounts), compute)


def test_clean_rows_are_the_stored_ones_as_shares(compute, noise):
    part = noise(10, channels=3)
    found = views_of(part, compute).clean(torch.tensor([7, 2, 7]))
    expected = part.inputs[[7, 2, 7]].transpose(0, 3, 1, 2) / np.float32(255)
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.float32))


def test_a_view_is_repeated_by_its_parameters(compute, noise):
    views = views_of(noise(10), compute, rotation_degrees=20, shift_share=0.1, contrast=0.2)
    index = torch.tensor([3, 1, 4])
    drawn = views.augmentation.draw(3, compute.generator("x"))
    fresh = views.augmented(index, compute.generator("x"))
    assert torch.equal(fresh, views.under(index, drawn))
    assert not torch.allclose(fresh, views.clean(index), atol=0.05)
    assert not torch.equal(fresh, views.augmented(index, compute.generator("y")))


def test_without_an_augmentation_a_view_is_the_row(compute, noise):
    views = Views(noise(10), Unchanged(), compute)
    index = torch.tensor([3, 1, 4])
    assert torch.equal(views.augmented(index, compute.generator("x")), views.clean(index))


def test_labels_stay_with_their_rows(compute, noise):
    part = noise(9, labels=[2, -1, 0, 1, -1, 2, 2, 0, 1])
    assert views_of(part, compute).labels.tolist() == part.labels.tolist()
    assert len(views_of(part, compute)) == 9


def test_samples_are_positions_drawn_with_replacement(compute, noise):
    views = views_of(noise(5), compute)
    drawn = views.sample(500, compute.generator("s"))
    assert set(drawn.tolist()) == set(range(5))
    assert torch.equal(drawn, views.sample(500, compute.generator("s")))


class Negative(Images):
    """A modality that hands networks something else than `Images` does."""

    def to_network(self, batch):
        return 1 - super().to_network(batch)


def test_the_parts_own_encoding_makes_the_inputs(compute, noise):
    part = noise(6)
    turned = Part(part.names, part.inputs, part.labels, Encoding(Negative(), part.encoding.schema))
    index = torch.arange(6)
    expected = 1 - views_of(part, compute).clean(index)
    assert torch.equal(views_of(turned, compute).clean(index), expected)
    torch.testing.assert_close(
        outputs(Mean(), turned, compute)[:, 0], 1 - outputs(Mean(), part, compute)[:, 0]
    )


class Mean(nn.Module):
    """Logits that numpy can repeat: the mean of a row, its negative, and 0.3."""

    def forward(self, inputs):
        mean = inputs.mean(dim=(1, 2, 3))
        return torch.stack([mean, -mean, torch.full_like(mean, 0.3)], dim=1)


@pytest.mark.parametrize("count", [1, CLEAN_BATCH, CLEAN_BATCH + 3])
def test_outputs_are_those_of_every_row_in_order(compute, noise, count):
    part = noise(count)
    found = outputs(Mean(), part, compute)
    mean = part.inputs.mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(found[:, 0].numpy(), mean, rtol=1e-5)
    assert found.shape == (count, 3)
    assert not found.requires_grad


def test_accuracy_is_the_share_of_right_rows(compute, part):
    pixels = np.zeros((4, 8, 8, 1), np.uint8)
    pixels[:2] = 200  # class 0; the darker ones are class 2
    found = accuracy(Mean(), part(pixels, [0, 1, 2, 2]), compute)
    assert found == {"validation_accuracy": 0.75}


def test_no_rows_have_no_accuracy(compute, noise):
    assert accuracy(Mean(), noise(0), compute) == {}
