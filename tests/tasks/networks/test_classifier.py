"""What a network says beside its logits, and a body that stays as it is."""

import copy

import pytest
import torch
from torch import nn

from tasks.fit import FitParams, fit
from tasks.networks import Classifier, Spec
from tasks.networks.convnet import ConvNet
from tasks.networks.resnet import ResNet

SPECS = {
    "convnet": Spec(network=ConvNet(widths=(8, 16, 16)), shape=(16, 16, 3), outputs=5),
    "resnet": Spec(network=ResNet(widths=(8, 16, 24)), shape=(16, 16, 3), outputs=5),
    "deep": Spec(network=ResNet(widths=(8, 16), blocks=2), shape=(8, 8, 1), outputs=3),
    "body": Spec(network=ConvNet(widths=(8, 8)), shape=(8, 8, 1), outputs=0),
}


@pytest.fixture(params=SPECS)
def case(request, build):
    """A network, and a batch for it."""
    spec = SPECS[request.param]
    side, _, channels = spec.shape
    batch = torch.rand(6, channels, side, side, generator=torch.Generator().manual_seed(0))
    return build(spec), batch


class Flat(nn.Module):
    """A body that shows nothing of what happens inside."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 6)

    def forward(self, inputs):
        return self.linear(inputs.flatten(1)).relu()


# Outputs


@pytest.mark.parametrize("training", [False, True])
def test_its_logits_are_those_of_a_plain_call(case, training):
    network, batch = case
    network.train(training)
    again = copy.deepcopy(network)
    said = network.outputs(batch)
    assert torch.equal(said.logits, again(batch))
    for name, tensor in network.state_dict().items():  # running statistics are the same too
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_features_are_what_the_head_sees(case):
    network, batch = case
    said = network.outputs(batch)
    assert torch.equal(said.features, network.body(batch))
    assert torch.equal(network.head(said.features), said.logits)
    assert said.features.dim() == 2


def test_maps_are_the_last_of_each_resolution_before_any_pool(case):
    network, batch = case
    outputs = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for layer in network.body
        if not isinstance(layer, nn.AvgPool2d)
    ]
    said = network.outputs(batch)
    for hook in hooks:
        hook.remove()
    last = {tuple(one.shape[2:]): one for one in outputs if one.dim() == 4}
    assert [tuple(one.shape[2:]) for one in said.maps] == list(last)
    assert sorted(last, reverse=True) == list(last)
    assert all(torch.equal(*pair) for pair in zip(said.maps, last.values(), strict=True))


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("convnet", [(8, 16, 16), (16, 8, 8), (16, 4, 4)]),
        ("resnet", [(8, 16, 16), (16, 8, 8), (24, 4, 4)]),
        ("deep", [(8, 8, 8), (16, 4, 4)]),
    ],
)
def test_maps_by_hand(build, name, shapes):
    spec = SPECS[name]
    side, _, channels = spec.shape
    said = build(spec).outputs(torch.rand(2, channels, side, side))
    assert [tuple(one.shape[1:]) for one in said.maps] == shapes


def test_gradients_flow_through_all_of_it(case):
    network, batch = case
    network.train()
    said = network.outputs(batch)
    first = next(network.body.parameters())
    for tensor in (said.logits, said.features, *said.maps):
        (gradient,) = torch.autograd.grad(
            tensor.square().sum(), first, retain_graph=True, allow_unused=True
        )
        assert gradient is not None
        assert gradient.abs().max() > 0
    (at_maps,) = torch.autograd.grad(said.logits.square().sum(), said.maps[-1])
    assert at_maps.abs().max() > 0


def test_half_precision_comes_out_as_float32(case):
    network, batch = case
    with torch.autocast("cpu", torch.bfloat16):
        said = network.outputs(batch)
    assert {one.dtype for one in (said.logits, said.features, *said.maps)} == {torch.float32}


def test_a_body_of_one_piece_has_features_but_no_maps():
    network = Classifier(Flat(), 6, 3)
    batch = torch.rand(4, 1, 8, 8)
    said = network.outputs(batch)
    assert said.maps == ()
    assert torch.equal(said.features, network.body(batch))
    assert torch.equal(said.logits, network(batch))


def test_the_inputs_are_no_map():
    network = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), 4, 2)
    assert network.outputs(torch.rand(3, 1, 8, 8)).maps == ()


# A frozen body


def trained(network, batch, compute, *, frozen):
    """The network's state after a few steps on this batch."""
    if frozen:
        network.freeze()
    labels = torch.arange(len(batch)) % network.head.out_features

    def step(_at, _generator):
        return nn.functional.cross_entropy(network(batch), labels)

    fit(network, step, FitParams(steps=4, learning_rate=0.1, ema_decay=0.5), compute)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("spec", [SPECS["convnet"], SPECS["resnet"]])
def test_only_the_head_learns_and_no_statistic_moves(build, compute, spec):
    batch = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = build(spec)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    after = trained(network, batch, compute, frozen=True)
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) != name.startswith("head."), name
    free = trained(build(spec), batch, compute, frozen=False)
    assert not any(
        torch.equal(tensor, before[name])
        for name, tensor in free.items()
        if tensor.is_floating_point()
    )


def test_a_frozen_body_stays_in_evaluation_mode(case):
    network, _ = case
    network.freeze()
    assert network.train() is network
    assert network.training
    assert not any(module.training for module in network.body.modules())
    network.eval()
    assert not network.training


def test_a_body_that_is_not_frozen_follows_the_mode(case):
    network, _ = case
    network.train()
    assert all(module.training for module in network.modules())
    network.eval()
    assert not any(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_copy_of_a_frozen_network_is_frozen(build):
    network = build(SPECS["convnet"])
    network.freeze()
    assert not any(module.training for module in copy.deepcopy(network).train().body.modules())
