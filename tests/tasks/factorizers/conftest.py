"""Layers to split, and the naive arithmetic to hold the splits against."""

import numpy as np
import pytest
import torch
from torch import nn

from tasks.factorizers import Layer
from tasks.networks import replace_layer

LAYERS = {
    "linear": lambda: nn.Linear(24, 40),
    "plain linear": lambda: nn.Linear(40, 24, bias=False),
    "conv1d": lambda: nn.Conv1d(16, 24, 5, padding=2),
    "conv2d": lambda: nn.Conv2d(16, 24, 3, padding=1, bias=False),
    "strided": lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(16, 24, 3, dilation=2, padding="same", padding_mode="reflect"),
    "grouped": lambda: nn.Conv2d(32, 64, 3, padding=1, groups=2),
    "pointwise": lambda: nn.Conv2d(32, 48, 1, stride=2, bias=False),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    return Layer("layer", LAYERS[request.param]().eval(), 100, 64)


@pytest.fixture(scope="session")
def split_up():
    """What stands in a layer's place at given ranks, through the public doors."""

    def make(method, layer, ranks):
        factor, weights = method.split(layer, ranks)
        holder = nn.ModuleDict({"layer": layer.module})
        smaller = replace_layer(holder, "layer", factor)
        for part, weight in zip(smaller, weights, strict=True):
            part.weight.data = weight.reshape(part.weight.shape).float()
        if layer.module.bias is not None:
            smaller[-1].bias.data = layer.module.bias.data
        return smaller.eval()

    return make


@pytest.fixture(scope="session")
def rows_for():
    """A batch that a layer takes."""

    def make(module):
        match module:
            case nn.Linear():
                shape = (3, module.in_features)
            case nn.Conv1d():
                shape = (3, module.in_channels, 10)
            case _:
                shape = (3, module.in_channels, 8, 8)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    return make


@pytest.fixture(scope="session")
def matrices():
    """A weight as one matrix by group, outputs by the rest; numpy alone."""

    def make(module):
        weight = module.weight.detach().numpy().astype(np.float64)
        groups = getattr(module, "groups", 1)
        return [one.reshape(len(one), -1) for one in np.split(weight, groups)]

    return make
