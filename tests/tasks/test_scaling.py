import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import CompressionError
from tasks.networks import Spec
from tasks.networks.convnet import ConvNet
from tasks.networks.mlp import Mlp
from tasks.networks.ngrams import NGrams
from tasks.networks.resnet import ResNet
from tasks.networks.text_cnn import TextCNN
from tasks.networks.text_transformer import TextTransformer
from tasks.scaling import scaled


def test_widths_keep_their_share_in_multiples_of_eight():
    assert scaled(ResNet(widths=(16, 32, 64)), 0.5) == ResNet(widths=(8, 16, 32))
    assert scaled(ConvNet(widths=(20, 40)), 0.75).widths == (16, 32)
    assert scaled(TextCNN(width=64, widths=(128,)), 0.25) == TextCNN(width=16, widths=(32,))
    assert scaled(NGrams(width=32, buckets=4096), 0.5) == NGrams(width=16, buckets=2048)


def test_the_whole_width_is_the_network_itself():
    assert scaled(ConvNet(widths=(10, 20, 36))) == ConvNet(widths=(10, 20, 36))


@given(
    widths=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    share=st.floats(0.01, 1),
)
def test_never_wider_and_never_empty(widths, share):
    found = scaled(Mlp(widths=tuple(widths)), share).widths
    for now, before in zip(found, widths, strict=True):
        assert 1 <= now <= before
        assert now % 8 == 0 or now == before
        assert abs(now - before * share) <= 8


def test_layers_that_go_are_blocks_then_layers_then_the_last_widths():
    assert scaled(ResNet(widths=(8, 16), blocks=3), shallower=2).blocks == 1
    assert scaled(ResNet(widths=(8, 16), blocks=1), shallower=1).widths == (8,)
    assert scaled(TextTransformer(layers=3), shallower=1).layers == 2
    assert scaled(ConvNet(widths=(8, 16, 24)), shallower=1).widths == (8, 16)


@pytest.mark.parametrize(
    ("network", "shallower"),
    [(ConvNet(widths=(8, 16)), 2), (TextTransformer(layers=1), 1), (NGrams(), 1)],
)
def test_one_layer_has_to_stay(network, shallower):
    with pytest.raises(CompressionError, match=f"one has to stay; {shallower} cannot go"):
        scaled(network, shallower=shallower)


def test_a_width_that_the_network_cannot_have_is_refused_by_name():
    expected = r"no 'text_transformer' of 0\.3 of the width: width 16 is no multiple of heads 6"
    with pytest.raises(CompressionError, match=expected):
        scaled(TextTransformer(width=48, heads=6), 0.3)


def test_what_comes_out_can_be_built():
    network = scaled(ResNet(widths=(16, 32), blocks=2), 0.5, 1)
    assert Spec(network=network, shape=(8, 8, 1), outputs=3).build().head.in_features == 16
