import numpy as np
import pytest
import torch
from torch import nn

from tasks.errors import ParamsError
from tasks.exporters.onnx import Onnx, run
from tasks.networks import NETWORKS, Spec, count_macs, count_parameters
from tasks.networks.text_cnn import TextCNN
from tasks.runtimes.text import PAD

IDS = torch.tensor([[3, 4, 3, 5, 0, 0], [7, 0, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4]])


def trained(**fields):
    """A body whose normalisation has seen data, in evaluation mode."""
    torch.manual_seed(0)
    body, _ = TextCNN(**{"width": 4, "widths": (5, 6), **fields}).body((6, 10))
    for module in body.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=0.02)
            nn.init.uniform_(module.running_var, 1e-3, 2e-3)
    return body.eval()


def by_hand(network, ids):
    """Convolutions written as loops over each text alone, without any filling."""
    rows = []
    for row in ids.tolist():
        there = [number for number in row if number != PAD]
        found = network.embedding.weight.detach().numpy()[there]
        for convolution, norm, _ in network.blocks:
            weight = convolution.weight.detach().numpy()
            half = weight.shape[2] // 2
            sums = np.zeros((len(there), len(weight)))
            for at in range(len(there)):
                for step in range(-half, half + 1):
                    if 0 <= at + step < len(there):
                        sums[at] += weight[:, :, step + half] @ found[at + step]
            scale = norm.weight.detach().numpy() / np.sqrt(norm.running_var.numpy() + norm.eps)
            found = (sums - norm.running_mean.numpy()) * scale + norm.bias.detach().numpy()
            found = found.clip(0)
        rows.append(found.max(0) if network.pool == "max" else found.mean(0))
    return np.stack(rows)


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_features_are_those_of_each_text_alone(pool, kernel):
    network = trained(pool=pool, kernel=kernel)
    found = network(IDS)
    assert found.shape == (3, 6)
    np.testing.assert_allclose(found.detach().numpy(), by_hand(network, IDS), atol=1e-4)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_filling_plays_no_part(pool):
    network = trained(pool=pool)
    expected = network(IDS)
    with torch.no_grad():
        network.embedding.weight[PAD] = 1e3
    longer = torch.nn.functional.pad(IDS, (0, 3))
    torch.testing.assert_close(network(longer), expected)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_a_row_without_tokens_is_zero(pool):
    assert not trained(pool=pool)(torch.zeros(2, 6, dtype=torch.long)).any()


def test_places_without_a_token_are_zero():
    found = trained().tokens(IDS)
    assert found.shape == (3, 6, 6)
    assert found[0, :4].any(1).all()
    assert not found[0, 4:].any()


def test_parameters_and_multiplications_are_counted_by_hand():
    spec = Spec(network=TextCNN(width=8, widths=(16, 32)), shape=(6, 100), outputs=3)
    network = spec.build().eval()
    expected = 100 * 8 + 3 * 8 * 16 + 32 + 3 * 16 * 32 + 64 + 33 * 3
    assert count_parameters(network) == expected
    assert count_macs(network, IDS) == 6 * 3 * 8 * 16 + 6 * 3 * 16 * 32 + 32 * 3


@pytest.mark.parametrize("fields", [{"widths": []}, {"kernel": 2}, {"pool": "sum"}, {"width": 0}])
def test_impossible_fields_are_refused(fields):
    with pytest.raises(ParamsError, match=next(iter(fields))):
        NETWORKS.parse({"name": "text_cnn", **fields})


def test_mixed_precision_is_close_and_every_weight_learns():
    network = trained(pool="mean").train()
    with torch.autocast("cpu", torch.bfloat16):
        found = network(IDS)
    torch.testing.assert_close(found.float(), network(IDS), atol=0.1, rtol=0.1)
    found.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert all(parameter.grad.any() for parameter in network.parameters())


def test_it_exports_for_any_batch(tmp_path):
    spec = Spec(network=TextCNN(width=4, widths=(5, 6)), shape=(6, 10), outputs=3)
    network = spec.build().eval()
    network.body = trained()
    Onnx().export(network, IDS[:2], tmp_path / "model.onnx")
    ids = torch.cat([IDS, torch.zeros(1, 6, dtype=torch.long)])
    for count in (1, 4):
        with torch.no_grad():
            eager = network(ids[:count]).numpy()
        found = run(tmp_path / "model.onnx", ids[:count].numpy())
        np.testing.assert_allclose(found, eager, rtol=1e-4, atol=1e-5)
