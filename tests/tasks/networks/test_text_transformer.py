import numpy as np
import pytest
import torch
from torch import nn

from tasks.errors import ParamsError
from tasks.exporters.onnx import Onnx, run
from tasks.networks import NETWORKS, Spec, count_macs, count_parameters
from tasks.networks.text_transformer import TextTransformer
from tasks.runtimes.text import PAD

IDS = torch.tensor([[3, 4, 3, 5, 0, 0], [7, 0, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4]])


def built(**fields):
    torch.manual_seed(0)
    body, _ = TextTransformer(**{"width": 12, "heads": 3, **fields}).body((6, 10))
    for parameter in body.parameters():
        nn.init.normal_(parameter, std=0.4)
    return body.eval()


def as_torchs(layer, width, heads):
    """torch's own encoder layer with the same weights."""
    hidden = layer.feed_forward[0].out_features
    found = nn.TransformerEncoderLayer(
        width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    pairs = (
        (found.self_attn.out_proj, layer.attention.outputs),
        (found.linear1, layer.feed_forward[0]),
        (found.linear2, layer.feed_forward[2]),
        (found.norm1, layer.before_attention),
        (found.norm2, layer.before_forward),
    )
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    found.self_attn.in_proj_weight = layer.attention.inputs.weight
    found.self_attn.in_proj_bias = layer.attention.inputs.bias
    return found.train()  # without dropout the same, and never torch's other path


def test_features_are_those_of_torchs_layers():
    network = built(layers=2, feed_forward=3)
    found = network.embedding(IDS) + network.positions
    for layer in network.layers:
        found = as_torchs(layer, 12, 3)(found, src_key_padding_mask=IDS == PAD)
    found = network.norm(found)
    expected = torch.stack([found[0, :4].mean(0), found[1, 0], found[2].mean(0)])
    torch.testing.assert_close(network(IDS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.tokens(IDS)[0, :4], found[0, :4], rtol=1e-4, atol=1e-5)


def test_filling_plays_no_part():
    network = built()
    expected = network(IDS)
    with torch.no_grad():
        network.embedding.weight[PAD] = 50.0
    torch.testing.assert_close(network(IDS), expected)


def test_a_row_without_tokens_is_a_number_and_learns_nothing_infinite():
    network = built()
    network(torch.zeros(2, 6, dtype=torch.long)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_the_same_words_elsewhere_are_another_text():
    network = built()
    assert not torch.allclose(network(IDS[2:]), network(IDS[2:].flip(1)), atol=1e-3)


def test_dropout_is_for_training_alone():
    network = built(dropout=0.5)
    assert torch.equal(network(IDS), network(IDS))
    network.train()
    torch.manual_seed(1)
    first = network(IDS)
    assert not torch.equal(first, network(IDS))
    torch.manual_seed(1)
    assert torch.equal(network(IDS), first)


def test_parameters_and_multiplications_are_counted_by_hand():
    fields = {"width": 8, "heads": 2, "layers": 3, "feed_forward": 4}
    spec = Spec(network=TextTransformer(**fields), shape=(6, 100), outputs=5)
    layer = 4 * 8 * 8 + 4 * 8 + 2 * 8 * 32 + 32 + 8 + 4 * 8
    assert count_parameters(spec.build()) == 106 * 8 + 3 * layer + 16 + 9 * 5
    macs = 6 * 3 * (4 * 8 * 8 + 2 * 8 * 32) + 8 * 5
    assert count_macs(spec.build().eval(), IDS) == macs


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"width": 10, "heads": 4}, "width 10 is no multiple of heads 4"),
        ({"layers": 0}, "layers"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_fields_are_refused(fields, named):
    with pytest.raises(ParamsError, match=named):
        NETWORKS.parse({"name": "text_transformer", **fields})


def test_mixed_precision_is_close_and_every_weight_learns():
    network = built(dropout=0.0).train()
    with torch.autocast("cpu", torch.bfloat16):
        found = network(IDS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, network(IDS), atol=0.2, rtol=0.1)
    found.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert all(parameter.grad.any() for parameter in network.parameters())


def test_it_exports_for_any_batch(tmp_path):
    fields = {"width": 12, "heads": 3, "layers": 1}
    spec = Spec(network=TextTransformer(**fields), shape=(6, 10), outputs=3)
    network = spec.build().eval()
    network.body = built(layers=1)
    Onnx().export(network, IDS[:2], tmp_path / "model.onnx")
    ids = torch.cat([IDS, torch.zeros(1, 6, dtype=torch.long)])
    for count in (1, 4):
        with torch.no_grad():
            eager = network(ids[:count]).numpy()
        found = run(tmp_path / "model.onnx", ids[:count].numpy())
        np.testing.assert_allclose(found, eager, rtol=1e-4, atol=1e-5)
