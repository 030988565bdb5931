import pytest
import torch
from torch import nn

from tasks.errors import CompressionError
from tasks.pruners.bn_scale import BnScale


def test_channels_with_the_smallest_scales_go(known):
    network = known()
    with torch.no_grad():
        network.body[0].weight.copy_(torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 3, 3))
        network.body[1].weight.copy_(torch.tensor([-2.0, 0.1, 1.0, -0.5]))
    BnScale(round_to=1).prune(network, torch.rand(2, 1, 4, 4))
    assert network.body[1].weight.tolist() == [-2.0, 1.0]  # by size, whatever the sign
    assert network.body[0].weight[:, 0, 0, 0].tolist() == [0, 2]


def test_a_residual_sum_goes_by_the_mean_over_its_normalisations(specs, trained):
    network = trained(specs["resnet"])
    path = "body.0.1", "body.1.residual.4", "body.2.residual.4"
    norms = [network.get_submodule(one) for one in path]
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(torch.randn(16))
        mean = torch.stack([norm.weight.abs() for norm in norms]).mean(0)
        kept = mean.argsort()[8:].sort().values
        expected = [norm.weight[kept] for norm in norms]
    BnScale().prune(network, torch.rand(2, 3, 8, 8))
    for one, wanted in zip(path, expected, strict=True):
        assert torch.equal(network.get_submodule(one).weight, wanted)


def test_layers_without_normalisation_stay(specs, trained, evidence_of):
    network = trained(specs["text_cnn"])
    BnScale().prune(network, evidence_of(specs["text_cnn"]).inputs)
    assert network.body.embedding.embedding_dim == 16
    assert [block[0].out_channels for block in network.body.blocks] == [16, 24]


@pytest.mark.parametrize("name", ["ngrams", "text_transformer"])
def test_networks_without_normalisation_are_refused(name, specs, trained, evidence_of):
    network = trained(specs[name])
    assert not any(isinstance(one, nn.BatchNorm1d) for one in network.modules())
    with pytest.raises(CompressionError, match="bn_scale needs batch normalisation"):
        BnScale().prune(network, evidence_of(specs[name]).inputs)
