import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tasks.errors import CompressionError
from tasks.networks import Classifier
from tasks.pruners.taylor import Taylor


def linear(seed=0):
    torch.manual_seed(seed)
    return Classifier(nn.Sequential(nn.Linear(4, 12), nn.ReLU()), 12, 3).eval()


def softmax(logits):
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def test_a_channel_is_worth_the_mean_squared_change_of_a_rows_loss():
    network, rows = linear(), torch.randn(90, 4)
    targets = torch.randn(90, 3).softmax(1)
    weight, bias, head, offset = (one.detach().double().numpy() for one in network.parameters())
    hidden = np.maximum(rows.double().numpy() @ weight.T + bias, 0)
    error = softmax(hidden @ head.T + offset) - targets.double().numpy()
    change = hidden * (error @ head)  # row by row, what the loss loses with the channel
    kept = np.sort(np.argsort((change**2).mean(0))[6:])
    before = network.head.weight.detach().clone()
    Taylor(round_to=1).prune(network, rows, targets)
    assert torch.equal(network.head.weight, before[:, torch.from_numpy(kept)])


def test_it_is_the_slope_of_gates_behind_each_layer(specs, trained, evidence_of):
    network, evidence = trained(specs["convnet"]), evidence_of(specs["convnet"], count=70)
    gates, count = {}, len(evidence.inputs)
    handles = []
    for at, width in ((2, 16), (5, 32), (8, 32)):
        gates[at] = torch.ones(count, width, 1, 1, requires_grad=True)
        hook = network.body[at].register_forward_hook(lambda _m, _i, said, at=at: said * gates[at])
        handles.append(hook)
    said = functional.log_softmax(network(evidence.inputs), 1)
    (-(evidence.targets * said).sum()).backward()
    for handle in handles:
        handle.remove()
    worth = {at: gate.grad[:, :, 0, 0].double().square().mean(0) for at, gate in gates.items()}
    kept = {at: one.argsort()[len(one) // 2 :].sort().values for at, one in worth.items()}
    biases = {at: network.body[at - 1].bias.detach().clone() for at in kept}
    Taylor().prune(network, evidence.inputs, evidence.targets)
    for at, chosen in kept.items():
        assert torch.equal(network.body[at - 1].bias, biases[at][chosen])


def test_what_the_head_cannot_see_goes_however_loud():
    network, rows = linear(), torch.randn(20, 4)
    with torch.no_grad():
        network.head.weight[:, ::2] = 0
        network.body[0].weight[::2] *= 50
    before = network.head.weight.detach().clone()
    Taylor(round_to=1).prune(network, rows, torch.randn(20, 3).softmax(1))
    assert torch.equal(network.head.weight, before[:, 1::2])


def test_it_depends_on_the_targets():
    ends = []
    for seed in (0, 1):
        network, rows = linear(), torch.randn(20, 4, generator=torch.Generator().manual_seed(3))
        torch.manual_seed(seed)
        Taylor(round_to=1).prune(network, rows, (5 * torch.randn(20, 3)).softmax(1))
        ends.append(network.body[0].weight.detach())
    assert not torch.equal(*ends)


def test_a_network_that_agrees_has_no_slope_and_is_refused():
    with pytest.raises(CompressionError, match="taylor finds no gradient"):
        Taylor(round_to=1).prune(linear(), torch.randn(20, 4))
