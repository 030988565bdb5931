"""Small networks of every kind, with rows for them and a teacher's answers."""

import pytest
import torch
from torch import nn

from tasks.networks import Spec
from tasks.networks.convnet import ConvNet
from tasks.networks.mlp import Mlp
from tasks.networks.ngrams import NGrams
from tasks.networks.resnet import ResNet
from tasks.networks.text_cnn import TextCNN
from tasks.networks.text_transformer import TextTransformer
from tasks.pruners import Evidence

SPECS = {
    "convnet": Spec(network=ConvNet(widths=(16, 32, 32)), shape=(8, 8, 1), outputs=5),
    "resnet": Spec(network=ResNet(widths=(16, 32), blocks=2), shape=(8, 8, 3), outputs=5),
    "mlp": Spec(network=Mlp(widths=(64, 32)), shape=(12,), outputs=3),
    "ngrams": Spec(network=NGrams(width=32, buckets=50), shape=(6, 40), outputs=3),
    "text_cnn": Spec(network=TextCNN(width=16, widths=(32, 48)), shape=(6, 40), outputs=3),
    "text_transformer": Spec(network=TextTransformer(width=32), shape=(6, 40), outputs=3),
}


def rows_for(spec, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if spec.network.takes == "text":
        return torch.randint(1, 40, (count, 6), generator=generator)
    if spec.network.takes == "tables":
        return torch.randn(count, *spec.shape, generator=generator)
    side, _, channels = spec.shape
    return torch.randn(count, channels, side, side, generator=generator)


def as_if_trained(spec, seed=0):
    """Normalisation has seen data, and no two weights are alike."""
    torch.manual_seed(seed)
    network = spec.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    network(rows_for(spec, 32))
    return network.eval()


def evidence_for(spec, count=24, seed=0):
    torch.manual_seed(seed + 100)
    return Evidence(rows_for(spec, count, seed), (3 * torch.randn(count, spec.outputs)).softmax(1))


@pytest.fixture(params=SPECS)
def spec(request):
    """Every network of the drawer, one after the other."""
    return SPECS[request.param]


@pytest.fixture
def network(spec):
    return as_if_trained(spec)


@pytest.fixture
def evidence(spec):
    return evidence_for(spec)


@pytest.fixture
def specs():
    return SPECS


@pytest.fixture
def trained():
    return as_if_trained


@pytest.fixture
def evidence_of():
    return evidence_for


@pytest.fixture
def known():
    """A convnet of one channel's depth, whose weights are all the caller's: conv, relu, head."""

    def build(width=4):
        spec = Spec(network=ConvNet(widths=(width,)), shape=(4, 4, 1), outputs=2)
        network = spec.build().eval()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.weight.fill_(0)
                    module.weight.view(len(module.weight), -1)[:, 0] = 1
            network.head.bias.fill_(0)
        return network

    return build
