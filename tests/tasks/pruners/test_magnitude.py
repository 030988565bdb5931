import numpy as np
import pytest
import torch
from torch import nn

from tasks import networks
from tasks.errors import CompressionError
from tasks.networks import Classifier, Spec, count_macs, count_parameters
from tasks.networks.convnet import ConvNet
from tasks.networks.ngrams import NGrams
from tasks.networks.resnet import ResNet
from tasks.networks.text_cnn import TextCNN
from tasks.networks.text_transformer import TextTransformer
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


# Texts

TEXTS = {
    "ngrams": Spec(network=NGrams(width=32, buckets=50), shape=(6, 40), outputs=3),
    "text_cnn": Spec(network=TextCNN(width=16, widths=(32, 48)), shape=(6, 40), outputs=3),
    "text_transformer": Spec(network=TextTransformer(width=32), shape=(6, 40), outputs=3),
}
IDS = torch.tensor([[3, 4, 5, 6, 0, 0], [7, 8, 9, 10, 11, 12], [13, 0, 0, 0, 0, 0]])


def text_network(name):
    """A network as if it had been trained: its normalisation has seen data."""
    torch.manual_seed(0)
    network = TEXTS[name].build()
    for parameter in network.body.parameters():
        nn.init.normal_(parameter, std=0.3)
    network(torch.randint(1, 40, (32, 6)))
    return network.eval()


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def narrowed(network, before):
    return {
        name.removeprefix("body."): shape
        for name, shape in shapes(network).items()
        if shape != before[name] and name.endswith("weight")
    }


EXPECTED = {
    "ngrams": {"tables.0.weight": (40, 16), "tables.1.weight": (50, 16), "head.weight": (3, 16)},
    "text_cnn": {
        "embedding.weight": (40, 8),
        "blocks.0.0.weight": (16, 8, 3),
        "blocks.0.1.weight": (16,),
        "blocks.1.0.weight": (24, 16, 3),
        "blocks.1.1.weight": (24,),
        "head.weight": (3, 24),
    },
    "text_transformer": {
        "layers.0.feed_forward.0.weight": (32, 32),
        "layers.0.feed_forward.2.weight": (32, 32),
        "layers.1.feed_forward.0.weight": (32, 32),
        "layers.1.feed_forward.2.weight": (32, 32),
    },
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_networks_get_narrower_where_it_is_safe(name):
    network = text_network(name)
    before = shapes(network)
    Magnitude(keep_ratio=0.5).prune(network, IDS[:2])
    assert narrowed(network, before) == EXPECTED[name]
    assert network(IDS).shape == (3, 3)


@pytest.mark.parametrize("name", TEXTS)
def test_a_pruned_text_network_is_stored_bit_for_bit_and_learns(name, tmp_path):
    network = text_network(name)
    Magnitude(keep_ratio=0.5).prune(network, IDS[:2])
    spec = TEXTS[name].resized_as(network)
    networks.save(tmp_path, spec, network)
    loaded_spec, loaded = networks.load(tmp_path)
    assert loaded_spec == spec
    assert repr(loaded) == repr(network)
    assert torch.equal(loaded(IDS), network(IDS))
    loaded.train()(IDS).square().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_values_of_vectors_that_do_nothing_are_those_that_go():
    network = text_network("ngrams")
    dead = torch.randperm(32)[:16]
    with torch.no_grad():
        for table in network.body.tables:
            table.weight[:, dead] = 0
    expected = network(IDS)
    Magnitude(keep_ratio=0.5).prune(network, IDS)
    torch.testing.assert_close(network(IDS), expected)


def test_values_are_ranked_by_the_norm_over_all_tables_and_the_head():
    network = text_network("ngrams")
    with torch.no_grad():
        network.body.tables[0].weight[:, ::2] *= 0.1
        network.body.tables[1].weight[:, ::3] *= 3
    tensors = [*(table.weight for table in network.body.tables), network.head.weight]
    whole = [tensor.detach().numpy().copy() for tensor in tensors]
    kept = np.sort(np.argsort(sum((tensor**2).sum(0) for tensor in whole))[16:])
    Magnitude(keep_ratio=0.5).prune(network, IDS)
    found = [*(table.weight for table in network.body.tables), network.head.weight]
    for old, new in zip(whole, found, strict=True):
        assert np.array_equal(new.detach().numpy(), old[:, kept])


def test_hidden_values_that_do_nothing_go_from_a_transformer():
    network = text_network("text_transformer")
    with torch.no_grad():
        for layer in network.body.layers:
            dead = torch.randperm(64)[:32]
            for tensor in (layer.feed_forward[0].weight, layer.feed_forward[0].bias):
                tensor[dead] = 0
            layer.feed_forward[2].weight[:, dead] = 0
    expected = network(IDS)
    Magnitude(keep_ratio=0.5).prune(network, IDS)
    torch.testing.assert_close(network(IDS), expected, rtol=1e-4, atol=1e-5)


def test_linear_layers_get_narrower_too():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
    network = Classifier(body, 16, 4).eval()
    Magnitude(keep_ratio=0.5).prune(network, torch.rand(2, 5))
    assert [network.body[at].weight.shape for at in (0, 1, 3)] == [(16, 5), (16,), (8, 16)]
    assert network(torch.rand(3, 5)).shape == (3, 4)


def test_removing_nothing_from_a_text_network_is_refused_with_the_layers():
    spec = Spec(network=NGrams(width=8, buckets=50), shape=(6, 40), outputs=3)
    with pytest.raises(CompressionError, match=r"'body\.tables\.0' 8, 'body\.tables\.1' 8;"):
        Magnitude().prune(spec.build().eval(), IDS)
