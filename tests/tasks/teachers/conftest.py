"""Settings to teach in: noisy pictures, real digits, tokens, and networks small enough to check."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from tasks.augmentations.affine import Affine
from tasks.augmentations.none import Unchanged
from tasks.modalities import Encoding
from tasks.networks import Classifier
from tasks.rows import HIDDEN, Part
from tasks.teachers import Setting
from tasks.views import Views

VOCABULARY, LENGTH = 40, 12


def _setting(network, pool, augmentation, compute, average=None):
    return Setting(
        network,
        Views(pool.labelled, augmentation, compute),
        Views(pool, augmentation, compute),
        average,
    )


@pytest.fixture(scope="session")
def linear():
    """Builds a linear classifier of pictures of side 8, sure of some noise and unsure of other."""

    def build(classes=4):
        torch.manual_seed(0)
        network = Classifier(nn.Flatten(), 64, classes)
        with torch.no_grad():
            network.head.weight.mul_(6)
        return network

    return build


@pytest.fixture
def pictures(part, compute, linear):
    """Makes a setting of 40 noisy pictures; those with a label are the labelled rows."""

    def make(labels=None, *, network=None, average=None, classes=4, seed=0, **amounts):
        labels = [*np.arange(8) % classes, *[HIDDEN] * 32] if labels is None else labels
        pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 1))
        pool = part(pixels, labels, classes)
        augmentation = Affine(**amounts) if amounts else Unchanged()
        return _setting(network or linear(classes), pool, augmentation, compute, average)

    return make


@pytest.fixture(scope="session")
def digits(part):
    """Parts of 400 real digits: a pool with a few labels each, and the same with every label."""

    def make(per_class=5, count=400):
        images, truth = load_digits(return_X_y=True)
        pixels = (images[:count] * 15.9).astype(np.uint8).reshape(-1, 8, 8, 1)
        shown = np.full(count, HIDDEN)
        for number in range(10):
            at = np.flatnonzero(truth[:count] == number)[:per_class]
            shown[at] = number
        return part(pixels, shown, 10), part(pixels, truth[:count], 10)

    return make


@pytest.fixture(scope="session")
def tokens():
    """Parts of 240 rows of tokens: each class has words of its own, between common ones; 0 pads."""
    random = np.random.default_rng(0)
    truth = np.arange(240) % 3
    ids = np.zeros((240, LENGTH), np.int64)
    for at, number in enumerate(truth):
        length = random.integers(6, LENGTH + 1)
        own = random.integers(10 + 10 * number, 20 + 10 * number, 3)
        words = np.concatenate([own, random.integers(1, 10, length - 3)])
        ids[at, :length] = random.permutation(words)
    shown = np.where(np.arange(240) < 12, truth, HIDDEN)
    modality = SimpleNamespace(to_network=lambda batch: batch.long())
    schema = {"shape": [LENGTH], "input_shape": [LENGTH, VOCABULARY], "classes": ["a", "b", "c"]}
    encoding = Encoding(modality, schema)
    names = np.asarray([f"{at:064x}" for at in range(240)])
    return Part(names, ids, shown, encoding), Part(names, ids, truth, encoding)


@pytest.fixture
def bag():
    """Builds a classifier of tokens: the mean of their embeddings."""

    def build():
        torch.manual_seed(0)
        return Classifier(nn.EmbeddingBag(VOCABULARY, 16), 16, 3)

    return build


@pytest.fixture(scope="session")
def setting_of(compute):
    """Makes a setting of a pool; its labelled rows are those whose label is shown."""

    def make(network, pool, augmentation=None, average=None):
        return _setting(network, pool, augmentation or Unchanged(), compute, average)

    return make


@pytest.fixture
def recorded():
    """Makes a network note every batch it is given and what it says of it."""

    def watch(network):
        seen = []
        network.register_forward_hook(
            lambda _module, inputs, output: seen.append((inputs[0].detach(), output.detach()))
        )
        return seen

    return watch


@pytest.fixture(scope="session")
def one_step():
    """Loss of one step of a method and its gradients by the network's parameters' names."""

    def run(method, setting, share_done=1.0, seed=0):
        torch.manual_seed(0)
        lesson = method.lesson(setting)
        loss = lesson(share_done, torch.Generator().manual_seed(seed))
        setting.network.zero_grad()
        loss.backward()
        gradients = {
            name: parameter.grad.clone() for name, parameter in setting.network.named_parameters()
        }
        return loss.detach(), gradients

    return run
