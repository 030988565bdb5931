import torch
from torch import nn

from tasks.networks import Classifier
from tasks.pruners.activation import Activation


def test_the_quietest_channels_go(known):
    network = known()
    with torch.no_grad():  # each channel answers to its own share of what is bright
        for channel, weight in enumerate((0.5, -1.0, 0.1, 2.0)):
            network.body[0].weight[channel] = weight
    Activation(round_to=1).prune(network, torch.rand(6, 1, 4, 4))
    assert network.body[0].weight[:, 0, 0, 0].tolist() == [0.5, 2.0]  # -1 is silent behind ReLU


def test_what_is_silent_depends_on_the_rows():
    for sign, kept in ((1, [0, 2]), (-1, [1, 3])):
        body = nn.Sequential(nn.Linear(1, 4), nn.ReLU())
        network = Classifier(body, 4, 2).eval()
        with torch.no_grad():
            body[0].weight.copy_(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
            body[0].bias.zero_()
            before = network.head.weight.clone()
        Activation(round_to=1).prune(network, sign * (1 + torch.rand(9, 1)))
        assert torch.equal(network.head.weight, before[:, kept])


def test_it_is_the_size_that_counts_and_not_the_sign():
    network = Classifier(nn.Linear(1, 4), 4, 2).eval()
    with torch.no_grad():
        network.body.weight.copy_(torch.tensor([[3.0], [0.1], [-2.0], [0.2]]))
        network.body.bias.zero_()
        before = network.head.weight.clone()
    Activation(round_to=1).prune(network, 1 + torch.rand(9, 1))
    assert torch.equal(network.head.weight, before[:, [0, 2]])


def test_the_mean_is_over_rows_and_positions(specs, trained, evidence_of):
    network, evidence = trained(specs["convnet"]), evidence_of(specs["convnet"], count=150)
    heard = {}
    for at in (2, 5, 8):  # behind each nonlinearity

        def hear(_module, _inputs, said, at=at):
            heard[at] = said.detach().double().abs().mean((0, 2, 3))

        network.body[at].register_forward_hook(hear)
    with torch.no_grad():
        network(evidence.inputs)
    kept = {at: said.argsort()[len(said) // 2 :].sort().values for at, said in heard.items()}
    biases = {at: network.body[at - 1].bias.detach().clone() for at in kept}
    Activation().prune(network, evidence.inputs)
    for at, chosen in kept.items():
        assert torch.equal(network.body[at - 1].bias, biases[at][chosen])


def test_every_reader_of_a_residual_sum_is_heard(specs, trained, evidence_of):
    network, evidence = trained(specs["resnet"]), evidence_of(specs["resnet"])
    readers = ("body.1.residual.0", "body.2.residual.0", "body.3.residual.0", "body.3.shortcut.0")
    loudness = []
    for reader in readers:

        def hear(_module, inputs):
            loudness.append(inputs[0].detach().double().abs().mean((0, 2, 3)))

        network.get_submodule(reader).register_forward_pre_hook(hear)
    with torch.no_grad():
        network(evidence.inputs)
    kept = torch.stack(loudness[: len(readers)]).mean(0).argsort()[8:].sort().values
    expected = network.body[0][1].bias.detach()[kept].clone()
    Activation().prune(network, evidence.inputs)
    assert torch.equal(network.body[0][1].bias, expected)
