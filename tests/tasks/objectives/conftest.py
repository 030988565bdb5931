"""Real rows of every modality, and a short training through the one loop."""

import copy
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine

from tasks.augmentations.affine import Affine
from tasks.augmentations.noise import Noise
from tasks.augmentations.none import Unchanged
from tasks.augmentations.token_dropout import TokenDropout
from tasks.fit import FitParams, fit
from tasks.modalities import Encoding
from tasks.modalities.tables import Tables
from tasks.modalities.text import Text
from tasks.networks import Network, Spec
from tasks.networks.convnet import ConvNet
from tasks.rows import HIDDEN, Part
from tasks.views import Views

CONVNET = ConvNet(widths=(8, 16))


@pytest.fixture(scope="session")
def digits(part, compute):
    """Views of 300 scanned digits, 8×8."""
    found = load_digits()
    pictures = (found.images[:300, :, :, None] * 255 / 16).round()
    return Views(part(pictures, found.target[:300]), Affine(shift_share=0.1), compute)


@pytest.fixture(scope="session")
def tables(compute):
    """Makes rows of features, with the column that each comes from, a pool."""

    def make(features, groups):
        features = np.asarray(features, np.float32)
        schema = {"shape": [features.shape[1]], "groups": list(groups), "classes": ["a", "b"]}
        names = np.asarray([f"{at:064x}" for at in range(len(features))])
        labels = np.arange(len(features)) % 2
        return Views(
            Part(names, features, labels, Encoding(Tables(), schema)), Unchanged(), compute
        )

    return make


@pytest.fixture(scope="session")
def numbers(tables, digits):
    """The same digits as a table of 64 columns with mean 0 and deviation 1."""
    flat = digits.part.inputs.reshape(len(digits), -1).astype(np.float32)
    return tables((flat - flat.mean(0)) / flat.std(0).clip(1), range(64))


@pytest.fixture(scope="session")
def cultivars(compute):
    """178 wines: 13 measured columns, and the first once more as one of three words."""
    found = load_wine()
    words = np.digitize(found.data[:, 0], [12.5, 13.5])
    cells = [
        {**dict(zip(found.feature_names, row, strict=True)), "strength": ["low", "mid", "high"][at]}
        for row, at in zip(found.data.tolist(), words, strict=True)
    ]
    return Views(_encoded(Tables(), cells, found.target), Unchanged(), compute)


@pytest.fixture(scope="session")
def noisy_cultivars(cultivars):
    """The same wines, with noise as the augmentation."""
    return Views(cultivars.part, Noise(), cultivars.compute)


@pytest.fixture(scope="session")
def sentences(compute):
    """Lines that scikit-learn describes its data sets with."""
    makers = (load_digits, load_iris, load_wine, load_breast_cancer, load_diabetes)
    lines = [line for maker in makers for line in maker().DESCR.splitlines() if len(line) > 30]
    lines = list(dict.fromkeys(lines))
    return Views(
        _encoded(Text(vocabulary=200, length=32), lines, np.arange(len(lines)) % 2),
        Unchanged(),
        compute,
    )


@pytest.fixture(scope="session")
def thinned_sentences(sentences):
    """The same lines, with tokens dropped as the augmentation."""
    return Views(sentences.part, TokenDropout(), sentences.compute)


def _encoded(modality, items, labels):
    contents = [
        item.encode() if isinstance(item, str) else json.dumps(item).encode() for item in items
    ]
    schema = {**modality.survey(iter(contents)), "classes": ["a", "b", "c"]}
    names = np.asarray([f"{at:064x}" for at in range(len(contents))])
    rows = np.stack([modality.encode(content, schema) for content in contents])
    return Part(names, rows, np.asarray(labels, np.int64), Encoding(modality, schema))


@dataclass
class Learnt:
    """How a training went; losses are means over the same five batches before and after."""

    before: float
    after: float
    first: dict[str, torch.Tensor]
    last: dict[str, torch.Tensor]
    encoder: torch.nn.Module
    heads: torch.nn.Module

    @property
    def moved(self) -> bool:
        """Whether every weight of the body has changed."""
        names = [name for name, _ in self.encoder.body.named_parameters()]
        return all(not torch.equal(self.first[name], self.last[name]) for name in names)


@pytest.fixture(scope="session")
def learn(compute):
    """Trains a fresh network by an objective, as the stage does."""

    def run(objective, pool, network: Network = CONVNET, steps=40, rate=5e-3):
        torch.manual_seed(0)
        spec = Spec(network=network, shape=pool.part.encoding.input_shape, outputs=0)
        encoder = spec.build()
        heads = objective.heads(spec.width, pool.part.encoding)
        first = copy.deepcopy(encoder.body.state_dict())

        def step(_at, generator):
            return objective.loss(encoder, heads, pool, generator)

        def cost():
            batches = [torch.Generator().manual_seed(seed) for seed in range(5)]
            with torch.no_grad():
                return float(np.mean([step(0, generator).item() for generator in batches]))

        before = cost()
        fit(encoder, step, FitParams(steps=steps, learning_rate=rate), compute, beside=heads)
        encoder.train()
        return Learnt(before, cost(), first, encoder.body.state_dict(), encoder, heads)

    return run


@pytest.fixture(scope="session")
def unlabelled():
    """The same pool with every label hidden."""

    def hide(pool):
        labels = np.full(len(pool), HIDDEN)
        return Views(replace(pool.part, labels=labels), pool.augmentation, pool.compute)

    return hide
