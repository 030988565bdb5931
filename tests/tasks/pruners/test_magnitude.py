import pytest
import torch
from torch import nn

from tasks.errors import CompressionError
from tasks.networks import Spec, count_macs, count_parameters
from tasks.networks.convnet import ConvNet
from tasks.networks.resnet import ResNet
from tasks.pruners.magnitude import Magnitude

CASES = {
    "convnet": Spec(network=ConvNet(widths=(16, 32, 32)), shape=(8, 8, 1), outputs=10),
    "resnet": Spec(network=ResNet(widths=(16, 32, 64)), shape=(16, 16, 3), outputs=10),
    "deep": Spec(network=ResNet(widths=(32, 64), blocks=2), shape=(8, 8, 1), outputs=3),
}


def example(spec, count=2):
    side, _, channels = spec.shape
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def widths(network):
    return [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("keep_ratio", "round_to"), [(0.5, 8), (0.75, 8), (0.5, 4), (0.6, 1)])
def test_widths_are_the_share_kept_and_multiples(build, name, keep_ratio, round_to):
    spec = CASES[name]
    network = build(spec)
    before, macs, size = (
        widths(network),
        count_macs(network, example(spec)),
        count_parameters(network),
    )
    Magnitude(keep_ratio=keep_ratio, round_to=round_to).prune(network, example(spec))
    for old, new in zip(before, widths(network), strict=True):
        assert new % round_to == 0
        assert new == pytest.approx(old * keep_ratio, abs=max(1, round_to - 1))
    assert count_macs(network, example(spec)) < macs
    assert count_parameters(network) < size
    outputs = network(example(spec, 5))
    assert outputs.shape == (5, spec.outputs)
    assert torch.isfinite(outputs).all()


@pytest.mark.parametrize("name", CASES)
def test_a_pruned_network_can_be_trained(build, name):
    network = build(CASES[name])
    Magnitude().prune(network, example(CASES[name]))
    network.train()(example(CASES[name])).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_channels_that_do_nothing_are_those_that_go(build):
    spec = CASES["convnet"]
    network = build(spec)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    followers = [convolutions[1].weight, convolutions[2].weight, network.head.weight]
    with torch.no_grad():
        for convolution, norm, follower in zip(convolutions, norms, followers, strict=True):
            dead = torch.randperm(convolution.out_channels)[: convolution.out_channels // 2]
            for tensor in (convolution.weight, norm.weight, norm.bias):
                tensor[dead] = 0
            cells = follower.shape[1] // convolution.out_channels
            follower.view(len(follower), -1, cells, *follower.shape[2:])[:, dead] = 0
    expected = network(example(spec, 6))
    Magnitude(keep_ratio=0.5).prune(network, example(spec))
    torch.testing.assert_close(network(example(spec, 6)), expected, rtol=1e-4, atol=1e-5)


def test_frozen_networks_are_pruned_too(build):
    network = build(CASES["convnet"]).requires_grad_(requires_grad=False)
    Magnitude().prune(network, example(CASES["convnet"]))
    assert widths(network) == [8, 16, 16]


def test_the_heads_outputs_stay(build):
    for spec in CASES.values():
        network = build(spec)
        Magnitude(keep_ratio=0.3, round_to=1).prune(network, example(spec))
        assert network.head.out_features == spec.outputs


def test_removing_nothing_is_refused_with_the_layers(build):
    spec = Spec(network=ConvNet(widths=(8, 8)), shape=(8, 8, 1), outputs=3)
    network = build(spec)
    with pytest.raises(CompressionError, match="removes nothing") as caught:
        Magnitude(keep_ratio=0.5, round_to=8).prune(network, example(spec))
    layers = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert all(f"'{name}' 8" in str(caught.value) for name in layers)
    assert "round_to 8" in str(caught.value)


@pytest.mark.parametrize(("first", "keep_ratio"), [(16, 0.25), (12, 0.5), (16, 0.01)])
def test_a_layer_that_rounding_would_empty_keeps_one_multiple(build, first, keep_ratio):
    spec = Spec(network=ConvNet(widths=(first, 32)), shape=(8, 8, 1), outputs=3)
    network = build(spec)
    Magnitude(keep_ratio=keep_ratio, round_to=8).prune(network, example(spec))
    assert widths(network)[0] == 8
