"""Whole networks: what is split, what is stored, and what goes on from there."""

import json
from hashlib import sha256

import numpy as np
import pytest
import torch
from torch import nn

from tasks import networks
from tasks.errors import ArtifactError, CompressionError
from tasks.exporters.onnx import Onnx, run
from tasks.factorizers.svd import Svd
from tasks.factorizers.tucker import Tucker
from tasks.networks import Classifier, Factor, Spec, count_macs, count_parameters, replace_layer
from tasks.networks.convnet import ConvNet
from tasks.networks.mlp import Mlp
from tasks.networks.resnet import ResNet
from tasks.networks.text_cnn import TextCNN
from tasks.networks.text_transformer import TextTransformer
from tasks.pruners.magnitude import Magnitude
from tasks.quantizers.static_int8 import StaticInt8

# Loads every folder that it is told and prints a digest of its network's outputs.
PROGRAM = """
import json, sys
from hashlib import sha256
from pathlib import Path
import torch
from tasks.networks import load

torch.set_num_threads(1)
found = {}
for folder in sys.argv[1:]:
    _, network = load(Path(folder))
    inputs = torch.load(Path(folder) / "rows.pt", weights_only=True)
    with torch.no_grad():
        found[folder] = sha256(network(inputs).numpy().tobytes()).hexdigest()
print(json.dumps(found))
"""

SPECS = {
    "convnet": Spec(network=ConvNet(widths=(16, 32)), shape=(8, 8, 1), outputs=10),
    "resnet": Spec(network=ResNet(widths=(16, 32, 64)), shape=(16, 16, 3), outputs=10),
    "mlp": Spec(network=Mlp(widths=(64, 64)), shape=(24,), outputs=3),
    "text_cnn": Spec(network=TextCNN(width=32, widths=(48, 64)), shape=(6, 40), outputs=3),
    "text_transformer": Spec(network=TextTransformer(width=32), shape=(6, 40), outputs=3),
}
METHODS = {"svd": Svd(keep_ratio=0.5), "tucker": Tucker(keep_ratio=0.5)}
BOTH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
EVERY = pytest.mark.parametrize("name", SPECS)


def rows_of(spec, count=4):
    torch.manual_seed(1)
    match spec.shape:
        case (side, _, channels):
            return torch.rand(count, channels, side, side)
        case (length, vocabulary):
            return torch.randint(1, vocabulary, (count, length))
        case (features,):
            return torch.randn(count, features)


def trained(name):
    """As if it had been trained: its normalisation has seen data."""
    torch.manual_seed(0)
    network = SPECS[name].build()
    for _ in range(3):
        network(rows_of(SPECS[name], 16))
    return network.eval()


def factored(name, method):
    """A factorized network, its spec and the report."""
    network, spec = trained(name), SPECS[name]
    report = method.factorize(network, rows_of(spec))
    factors = {one.layer: one.factor for one in report if one.factor}
    return network, spec.model_copy(update={"factors": factors}), report


def test_networks_are_stored_bit_for_bit(tmp_path, python, state_digest):
    expected = {}
    for name in SPECS:
        for title, method in METHODS.items():
            network, spec, _ = factored(name, method)
            folder = tmp_path / f"{name} {title}"
            folder.mkdir()
            networks.save(folder, spec, network)
            torch.save(rows_of(spec), folder / "rows.pt")
            loaded_spec, loaded = networks.load(folder)
            assert loaded_spec == spec
            assert repr(loaded) == repr(network)
            assert state_digest(loaded) == state_digest(network)
            with torch.no_grad():
                said = network(rows_of(spec)).numpy()
            expected[str(folder)] = sha256(said.tobytes()).hexdigest()
    done = python("-c", PROGRAM, *expected)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


@EVERY
@BOTH
def test_it_shrinks_and_says_by_how_much(name, method):
    dense = trained(name)
    network, spec, report = factored(name, method)
    rows = rows_of(spec)
    assert count_parameters(network) < count_parameters(dense)
    assert count_macs(network, rows) < count_macs(dense, rows)
    saved = sum(one.parameters_before - one.parameters_after for one in report)
    assert saved == count_parameters(dense) - count_parameters(network)
    roots = (nn.Linear, nn.Conv1d, nn.Conv2d)
    layers = {at: one for at, one in dense.named_modules() if isinstance(one, roots)}
    assert {one.layer for one in report} == set(layers)
    for one in report:
        assert one.shape == tuple(layers[one.layer].weight.shape)
        whole = one.factor is None
        assert whole == (one.relative_error == 0) == (one.parameters_before == one.parameters_after)
        if not whole:
            before, after = (part.get_submodule(one.layer) for part in (dense, network))
            assert one.parameters_before == count_parameters(before)
            assert one.parameters_after == count_parameters(after)
            assert count_parameters(after) - bias(after[-1]) <= 0.5 * before.weight.numel()


def bias(layer):
    return 0 if layer.bias is None else layer.bias.numel()


@EVERY
@BOTH
def test_it_can_be_trained_on(name, method):
    network, spec, _ = factored(name, method)
    network.train()(rows_of(spec)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_errors_reported_are_those_of_the_layers():
    dense = trained("mlp")
    network, _, report = factored("mlp", METHODS["svd"])
    (first,) = [one for one in report if one.layer == "body.0"]
    last, inner = (part.weight.detach().numpy() for part in reversed(network.body[0]))
    weight = dense.body[0].weight.detach().numpy()
    expected = np.linalg.norm(weight - last @ inner) / np.linalg.norm(weight)
    assert first.relative_error == pytest.approx(expected, rel=1e-4)


def test_with_almost_all_energy_kept_answers_stay():
    """Layers of low rank are found to be so."""
    network, spec = trained("mlp"), SPECS["mlp"]
    with torch.no_grad():
        for layer in (network.body[0], network.body[3]):
            rows, columns = layer.weight.shape
            layer.weight.copy_(torch.randn(rows, 5) @ torch.randn(5, columns) / 5)
    rows = rows_of(spec)
    expected = network(rows)
    report = Svd(energy=1 - 1e-9, round_to=1).factorize(network, rows)
    assert [one.factor and one.factor.ranks for one in report] == [(5,), (5,), None]
    torch.testing.assert_close(network(rows), expected, rtol=1e-4, atol=1e-4)


def test_attention_is_split_and_a_head_that_would_grow_is_not():
    _, spec, report = factored("text_transformer", METHODS["svd"])
    assert {"body.layers.0.attention.inputs", "body.layers.1.attention.outputs"} <= set(
        spec.factors
    )
    wide = Classifier(nn.Flatten(), 64, 3).eval()
    with pytest.raises(CompressionError):
        Svd(energy=0.99).factorize(wide, torch.rand(2, 64))
    large = Classifier(nn.Flatten(), 64, 48).eval()
    (head,) = Svd(keep_ratio=0.7).factorize(large, torch.rand(2, 64))
    assert head.factor == Factor(kind="linear", ranks=(16,))
    assert large(torch.rand(2, 64)).shape == (2, 48)
    assert report[-1].layer == "head"


@BOTH
def test_it_is_exported_and_quantized(method, tmp_path):
    network, spec, _ = factored("convnet", method)
    rows = rows_of(spec, 40)
    difference = Onnx().export(network, rows[:4], tmp_path / "model.onnx")
    assert difference < 1e-4
    StaticInt8(calibration_rows=40).quantize(
        tmp_path / "model.onnx", tmp_path / "int8.onnx", rows.numpy()
    )
    plain, small = (run(tmp_path / name, rows.numpy()) for name in ("model.onnx", "int8.onnx"))
    assert small.shape == plain.shape == (40, 10)
    assert np.corrcoef(plain.ravel(), small.ravel())[0, 1] > 0.95
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size


def test_where_every_layer_would_grow_it_is_refused_with_the_layers():
    network = trained("convnet")
    with pytest.raises(
        CompressionError, match=r"energy 0\.9999 with round_to 8 would shrink no layer"
    ) as caught:
        Svd(energy=0.9999).factorize(network, rows_of(SPECS["convnet"]))
    for name in (
        "'body.0' 16x1x3x3",
        "'body.3' 32x16x3x3",
        "'head' 10x128",
        "lower it, or lower round_to",
    ):
        assert name in str(caught.value)
    assert repr(network) == repr(trained("convnet"))
    with pytest.raises(CompressionError, match=r"keep_ratio 0\.0001 .* raise it, or lower"):
        Svd(keep_ratio=0.0001).factorize(network, rows_of(SPECS["convnet"]))


def test_a_pruned_network_is_factorized_and_a_factored_one_is_not_pruned(tmp_path):
    network, spec = trained("resnet"), SPECS["resnet"]
    Magnitude().prune(network, rows_of(spec))
    pruned = spec.resized_as(network)
    report = Svd(keep_ratio=0.5).factorize(network, rows_of(spec))
    factors = {one.layer: one.factor for one in report if one.factor}
    both = pruned.model_copy(update={"factors": factors})
    networks.save(tmp_path, both, network)
    _, loaded = networks.load(tmp_path)
    assert torch.equal(loaded(rows_of(spec)), network(rows_of(spec)))
    with pytest.raises(CompressionError, match=r"body\.3\.residual\.0.* prune first"):
        both.resized_as(network)


def test_what_was_split_can_be_split_again(tmp_path):
    network, spec, _ = factored("mlp", METHODS["svd"])
    again = Svd(keep_ratio=0.6, round_to=2).factorize(network, rows_of(spec))
    more = {one.layer: one.factor for one in again if one.factor}
    assert all(name not in spec.factors for name in more)
    both = spec.model_copy(update={"factors": {**spec.factors, **more}})
    networks.save(tmp_path, both, network)
    assert torch.equal(networks.load(tmp_path)[1](rows_of(spec)), network(rows_of(spec)))


# Specs that do not fit


def stored(tmp_path, factors):
    network, spec, _ = factored("convnet", METHODS["svd"])
    networks.save(tmp_path, spec, network)
    plain = json.loads((tmp_path / "network.json").read_text())
    (tmp_path / "network.json").write_text(json.dumps(plain | {"factors": factors}))
    return tmp_path


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"body.99": {"kind": "linear", "ranks": [4]}}, "'body.99'"),
        ({"body.0": {"kind": "linear", "ranks": [4]}}, "Conv2d by factors of kind 'linear'"),
        ({"body.1": {"kind": "convolution", "ranks": [4]}}, "BatchNorm2d"),
        ({"head": {"kind": "tucker", "ranks": [4, 4]}}, "Linear by factors of kind 'tucker'"),
        ({"body.0": {"kind": "tucker", "ranks": [4]}}, "takes ranks: 2"),
        ({"body.0": {"kind": "convolution", "ranks": [4, 4]}}, "takes ranks: 1"),
        ({"body.0": {"kind": "convolution", "ranks": [0]}}, "greater than or equal to 1"),
        ({"body.3": {"kind": "convolution", "ranks": [3]}}, "size mismatch"),
    ],
)
def test_a_spec_that_does_not_fit_is_an_artifact_error(tmp_path, factors, message):
    with pytest.raises(ArtifactError, match=message):
        networks.load(stored(tmp_path, factors))


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_is_replaced_in_its_mode_and_precision(training):
    holder = nn.ModuleDict({"layer": nn.Conv1d(8, 8, 3).double().train(training)})
    smaller = replace_layer(holder, "layer", Factor(kind="tucker", ranks=(2, 4)))
    assert holder["layer"] is smaller
    assert all(part.training == training for part in smaller)
    assert {parameter.dtype for parameter in smaller.parameters()} == {torch.float64}
