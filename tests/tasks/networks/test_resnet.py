import pytest
import torch
from torch import nn

from tasks.networks import Spec, count_parameters
from tasks.networks.resnet import Block, GlobalAverage, ResNet


def test_the_resnet_8_of_mlperf_tiny_has_about_78k_parameters():
    spec = Spec(network=ResNet(widths=(16, 32, 64)), shape=(32, 32, 3), outputs=10)
    assert count_parameters(spec.build()) == pytest.approx(78_000, rel=0.01)


@pytest.mark.parametrize(("side", "blocks"), [(8, 1), (9, 2), (32, 1)])
def test_features_have_the_width_it_states(side, blocks):
    body, width = ResNet(widths=(4, 6, 8), blocks=blocks).body((side, side, 1))
    assert width == 8
    assert body.eval()(torch.rand(2, 1, side, side)).shape == (2, 8)


def test_every_stage_after_the_first_halves_the_map():
    body, _ = ResNet(widths=(4, 6, 8), blocks=2).body((32, 32, 1))
    sides = []
    for block in body:
        if isinstance(block, Block):
            block.register_forward_hook(lambda _m, _i, out: sides.append(out.shape[-1]))
    body.eval()(torch.rand(1, 1, 32, 32))
    assert sides == [32, 32, 16, 16, 8, 8]


def test_a_block_adds_its_input():
    block = Block(3, 3, stride=1).eval()
    for parameter in block.residual.parameters():
        nn.init.zeros_(parameter)
    inputs = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(block(inputs), inputs.clamp_min(0))


def test_a_shortcut_is_projected_only_where_shapes_differ():
    assert isinstance(Block(4, 4, stride=1).shortcut, nn.Identity)
    assert not isinstance(Block(4, 4, stride=2).shortcut, nn.Identity)
    assert not isinstance(Block(4, 8, stride=1).shortcut, nn.Identity)


def test_the_last_layer_averages_the_map():
    inputs = torch.rand(2, 3, 5, 7)
    torch.testing.assert_close(GlobalAverage()(inputs), inputs.flatten(2).mean(2))
