import numpy as np
import pytest
import torch
from torch import nn

from tasks.channels import Channels, listening, squares
from tasks.errors import CompressionError
from tasks.networks import Classifier, Spec
from tasks.networks.resnet import ResNet
from tasks.networks.text_transformer import TextTransformer
from tasks.pruners.magnitude import Magnitude

PICTURES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Pooled(nn.Module):
    """The average over the map."""

    def forward(self, inputs):
        return inputs.mean((2, 3))


def classifier(*layers, width):
    torch.manual_seed(0)
    return Classifier(nn.Sequential(*layers, Pooled()), width, 3).eval()


def test_channels_that_are_added_go_together():
    spec = Spec(network=ResNet(widths=(8, 16)), shape=(8, 8, 3), outputs=4)
    groups = Channels(spec.build().eval(), PICTURES).groups
    assert [(group.layers, group.width) for group in groups] == [
        (("body.0.0", "body.1.residual.3"), 8),
        (("body.1.residual.0",), 8),
        (("body.2.residual.0",), 16),
        (("body.2.residual.3", "body.2.shortcut.0"), 16),
    ]
    roles = [
        [len(group.those_that(role)) for role in ("make", "read", "scale")] for group in groups
    ]
    assert roles == [[2, 3, 2], [1, 1, 1], [1, 1, 1], [2, 1, 2]]


def test_attention_and_what_is_added_to_it_keep_their_widths():
    spec = Spec(network=TextTransformer(width=16), shape=(6, 40), outputs=3)
    groups = Channels(spec.build().eval(), torch.randint(1, 40, (2, 6))).groups
    layers = [f"body.layers.{at}.feed_forward.0" for at in (0, 1)]
    assert [group.layers for group in groups] == [(layer,) for layer in layers]


def test_squares_are_summed_over_all_that_makes_scales_and_reads_a_channel():
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AvgPool2d(3), nn.Flatten())
    network = Classifier(body, 24, 3).eval()
    with torch.no_grad():
        network.body[1].weight.copy_(torch.rand(6))
    (group,) = Channels(network, PICTURES).groups
    made, scaled = (network.body[at].weight.detach().double().numpy() for at in (0, 1))
    read = network.head.weight.detach().double().numpy().reshape(3, 6, 4)
    expected = (made**2).sum((1, 2, 3)) + scaled**2 + (read**2).sum((0, 2))
    found = group.total(squares, group.members).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("round_to", [1, 8])
def test_the_parts_of_a_grouped_convolution_stay_as_wide_as_each_other(round_to):
    grouped = nn.Conv2d(24, 48, 3, groups=3, bias=False)
    network = classifier(nn.Conv2d(3, 24, 1), nn.ReLU(), grouped, nn.ReLU(), width=48)
    assert [group.parts for group in Channels(network, PICTURES).groups] == [3, 3]
    Magnitude(keep_ratio=0.6, round_to=round_to).prune(network, PICTURES)
    first, second, head = network.body[0], network.body[2], network.head
    assert (first.out_channels, second.in_channels) == (second.in_channels, first.out_channels)
    assert first.out_channels % 3 == second.out_channels % 3 == 0
    assert second.weight.shape[1] * 3 == first.out_channels
    assert head.in_features == second.out_channels
    if round_to == 8:
        assert (first.out_channels, second.out_channels) == (24, 24)
    assert network(PICTURES).shape == (2, 3)


def test_a_convolution_of_each_channel_by_itself_loses_any():
    alone = nn.Conv2d(16, 16, 3, groups=16, bias=False)
    network = classifier(nn.Conv2d(3, 16, 1), alone, nn.Conv2d(16, 16, 1), width=16)
    Magnitude().prune(network, PICTURES)
    assert (network.body[0].out_channels, alone.out_channels, alone.groups) == (8, 8, 8)
    assert network(PICTURES).shape == (2, 3)


def test_a_layers_gradient_is_what_it_alone_sends_back():
    inputs, one, other = torch.rand(2, 3, requires_grad=True), nn.Linear(3, 2), nn.Linear(3, 2)
    with listening([one]) as heard:
        said = one(inputs).sum() + other(inputs).sum()
    (found,) = torch.autograd.grad(said, list(heard.values()))
    torch.testing.assert_close(found, one.weight.sum(0).expand(2, 3))
    assert not one._forward_pre_hooks


# What the graph cannot follow


class Detached(nn.Module):
    """Keeps its gradient to itself."""

    def forward(self, inputs):
        return inputs.detach()


class Counting(nn.Module):
    """Counts on its width."""

    def forward(self, inputs):
        return inputs.view(len(inputs), 16, -1).mean(2)


def test_a_network_that_cannot_be_traced_is_named():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 16, 1)

        def forward(self, inputs):
            if inputs.requires_grad or torch.is_grad_enabled():
                raise RuntimeError("no gradients here")
            return self.layer(inputs).mean((2, 3))

    network = Classifier(Broken(), 16, 3).eval()
    message = r"the network \(Broken\) cannot be pruned by channels: .*no gradients here; say"
    with pytest.raises(CompressionError, match=message):
        Magnitude().prune(network, PICTURES)


def test_a_network_that_no_longer_runs_is_named():
    body = nn.Sequential(nn.Conv2d(3, 16, 1), Counting())
    with pytest.raises(CompressionError, match=r"cannot be pruned by channels: .*keeps_widths"):
        Magnitude().prune(Classifier(body, 16, 3).eval(), PICTURES)


def test_layers_beyond_the_graph_are_left_alone():
    body = nn.Sequential(nn.Conv2d(3, 16, 1), Detached(), nn.Conv2d(16, 16, 1), Pooled())
    network = Classifier(body, 16, 3).eval()
    Magnitude().prune(network, PICTURES)
    assert (network.body[0].out_channels, network.body[2].out_channels) == (16, 8)
