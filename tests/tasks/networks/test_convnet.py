import pytest
import torch
from torch import nn

from tasks.errors import ParamsError
from tasks.networks import NETWORKS, Spec, count_parameters
from tasks.networks.convnet import ConvNet


def test_a_known_number_of_parameters():
    spec = Spec(network=ConvNet(widths=(8, 16, 16)), shape=(8, 8, 1), outputs=10)
    assert count_parameters(spec.build()) == 4258


@pytest.mark.parametrize("side", [4, 5, 8, 9, 12, 20, 31, 32])
@pytest.mark.parametrize("widths", [(8,), (4, 6), (4, 6, 8, 10)])
def test_features_have_the_width_it_states(side, widths):
    body, width = ConvNet(widths=widths).body((side, side, 3))
    features = body.eval()(torch.rand(2, 3, side, side))
    assert features.shape == (2, width)
    assert width == 4 * widths[-1]


def test_maps_halve_from_the_second_layer_while_wider_than_four():
    body, _ = ConvNet(widths=(4, 4, 4, 4, 4)).body((32, 32, 1))
    strides = [module.stride[0] for module in body.modules() if isinstance(module, nn.Conv2d)]
    assert strides == [1, 2, 2, 2, 1]


@pytest.mark.parametrize("widths", [[], [0], [-4], [4.5]])
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ParamsError, match="widths"):
        NETWORKS.parse({"name": "convnet", "widths": widths})
