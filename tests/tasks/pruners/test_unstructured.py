import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.errors import CompressionError
from tasks.networks import Classifier, count_macs, count_parameters
from tasks.pruners.unstructured import Unstructured

WIDE = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.Embedding)


def weights(network):
    return {
        name: module.weight.detach().numpy().copy()
        for name, module in network.named_modules()
        if isinstance(module, WIDE)
    }


def linear():
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Linear(6, 20), nn.ReLU()), 20, 3).eval()


@settings(max_examples=25)
@given(st.floats(0.01, 0.5))
def test_the_smallest_weights_of_the_network_become_zero(sparsity):
    network = linear()
    before = weights(network)
    Unstructured(sparsity=sparsity).prune(network, torch.rand(2, 6))
    whole = np.concatenate([one.ravel() for one in before.values()])
    limit = np.sort(np.abs(whole))[round(len(whole) * sparsity) - 1]
    for name, after in weights(network).items():
        assert np.array_equal(after, np.where(np.abs(before[name]) <= limit, 0, before[name]))


def test_each_layer_loses_its_share_where_that_is_asked_for():
    network = linear()
    with torch.no_grad():
        network.head.weight.mul_(100)
    before = weights(network)
    Unstructured(sparsity=0.7, scope="layer").prune(network, torch.rand(2, 6))
    for name, after in weights(network).items():
        assert (after == 0).mean() == pytest.approx(0.7, abs=0.01)
        assert np.abs(before[name][after == 0]).max() < np.abs(after[after != 0]).min()


def test_it_takes_every_network_and_keeps_shapes_biases_and_macs(spec, network, evidence):
    before = {name: one.clone() for name, one in network.state_dict().items()}
    macs, size = count_macs(network, evidence.example), count_parameters(network)
    Unstructured(sparsity=0.4).prune(network, evidence.inputs)
    assert spec.resized_as(network) == spec
    assert (count_macs(network, evidence.example), count_parameters(network)) == (macs, size)
    touched = {f"{name}.weight" for name in weights(network)}
    for name, after in network.state_dict().items():
        assert torch.equal(after, before[name]) != (name in touched)


def test_a_layer_that_would_be_emptied_is_named():
    network = linear()
    with torch.no_grad():
        network.body[0].weight.mul_(1e-6)
    with pytest.raises(CompressionError, match=r"leaves no weight in body\.0; lower it"):
        Unstructured(sparsity=0.8).prune(network, torch.rand(2, 6))


def test_removing_nothing_is_refused_with_the_layers():
    with pytest.raises(
        CompressionError, match=r"nothing from the weights 'body\.0' 120, 'head' 60"
    ):
        Unstructured(sparsity=0.001).prune(linear(), torch.rand(2, 6))
