import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from torch import nn

from tasks import networks
from tasks.errors import ParamsError
from tasks.exporters.onnx import Onnx, run
from tasks.networks import NETWORKS, Spec, count_macs, count_parameters
from tasks.networks.mlp import Mlp
from tasks.pruners.magnitude import Magnitude
from tasks.quantizers.static_int8 import StaticInt8

FEATURES = 12
ROWS = torch.randn(300, FEATURES, generator=torch.Generator().manual_seed(0))
TARGETS = (ROWS[:, 0] > 0).long() + (ROWS[:, 1] > 0)


def spec_of(*widths, dropout=0.0):
    return Spec(network=Mlp(widths=widths, dropout=dropout), shape=(FEATURES,), outputs=3)


def trained(spec):
    """A network that learnt something, in evaluation mode."""
    torch.manual_seed(0)
    network = spec.build()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(ROWS), TARGETS).backward()
        optimizer.step()
    return network.eval()


def accuracy(logits):
    return float((np.asarray(logits).argmax(1) == TARGETS.numpy()).mean())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    network = trained(spec_of(32, 16, dropout=0.2))
    path = tmp_path_factory.mktemp("mlp") / "model.onnx"
    return network, path, Onnx().export(network, ROWS[:16], path)


def test_outputs_are_those_of_the_layers_written_out():
    network = trained(spec_of(8, 5))
    state = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    found = ROWS.double().numpy()
    for at in (0, 3):
        found = found @ state[f"body.{at}.weight"].T
        mean, variance, scale, shift = (
            state[f"body.{at + 1}.{name}"]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        found = np.maximum((found - mean) / np.sqrt(variance + 1e-5) * scale + shift, 0)
    logits = found @ state["head.weight"].T + state["head.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(network(ROWS).numpy(), logits, rtol=1e-4, atol=1e-4)


def test_parameters_and_macs_by_hand():
    network = spec_of(32, 16).build().eval()
    assert count_parameters(network) == 12 * 32 + 64 + 32 * 16 + 32 + 16 * 3 + 3
    assert count_macs(network, ROWS) == 12 * 32 + 32 * 16 + 16 * 3


@pytest.mark.parametrize("widths", [(7,), (4, 6), (9, 5, 3, 8)])
def test_features_have_the_width_it_states(widths):
    body, width = Mlp(widths=widths).body((FEATURES,))
    assert body.eval()(ROWS[:1]).shape == (1, width)
    assert width == widths[-1]


def test_features_are_outputs_before_the_head_and_there_are_no_maps():
    network = trained(spec_of(8, 5))
    said = network.outputs(ROWS[:4])
    torch.testing.assert_close(network.head(said.features), said.logits)
    torch.testing.assert_close(network.body(ROWS[:4]), said.features)
    assert said.features.shape == (4, 5)
    assert said.maps == ()


def test_every_parameter_learns():
    network = spec_of(8, 5, dropout=0.5).build().train()
    nn.functional.cross_entropy(network(ROWS), TARGETS).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_dropout_drops_its_share_while_training_only():
    body, _ = Mlp(widths=(64,), dropout=0.5).body((FEATURES,))
    plain, _ = Mlp(widths=(64,)).body((FEATURES,))
    plain.load_state_dict(body.state_dict())
    torch.manual_seed(0)
    kept, expected = body.train()(ROWS), plain.train()(ROWS)
    dropped = (kept == 0) & (expected > 0)
    assert float(dropped.sum() / (expected > 0).sum()) == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(kept[~dropped], 2 * expected[~dropped])
    assert torch.equal(body.eval()(ROWS), body.eval()(ROWS))


@pytest.mark.parametrize(
    "wrong", [{"widths": []}, {"widths": [0]}, {"dropout": 1.0}, {"dropout": -0.1}]
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        NETWORKS.parse({"name": "mlp", **wrong})


def test_it_learns():
    assert accuracy(trained(spec_of(32, 16))(ROWS).detach()) > 0.9


def test_it_is_stored_and_loaded_bit_equal(tmp_path):
    network = trained(spec_of(8, 5, dropout=0.1))
    networks.save(tmp_path, spec_of(8, 5, dropout=0.1), network)
    spec, loaded = networks.load(tmp_path)
    assert spec == spec_of(8, 5, dropout=0.1)
    assert torch.equal(loaded(ROWS), network(ROWS))


def test_it_exports_for_any_batch(exported):
    network, path, difference = exported
    assert difference < 1e-4
    assert InferenceSession(path).get_inputs()[0].shape[1] == FEATURES
    for count in (1, 7, 300):
        with torch.no_grad():
            expected = network(ROWS[:count]).numpy()
        np.testing.assert_allclose(run(path, ROWS[:count].numpy()), expected, atol=1e-4)


@pytest.mark.parametrize("per_channel", [True, False])
def test_it_quantizes(exported, tmp_path, per_channel):
    _, path, _ = exported
    target = tmp_path / "int8.onnx"
    StaticInt8(per_channel=per_channel).quantize(path, target, ROWS.numpy())
    assert accuracy(run(target, ROWS.numpy())) > accuracy(run(path, ROWS.numpy())) - 0.03
    assert b"QuantizeLinear" in target.read_bytes()
    assert target.stat().st_size != path.stat().st_size
    assert run(target, ROWS[:1].numpy()).shape == (1, 3)


def test_it_prunes_and_what_is_left_is_stored_and_exported(tmp_path):
    network = trained(spec_of(32, 16))
    Magnitude(keep_ratio=0.5, round_to=8).prune(network, ROWS[:2])
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(12, 16), (16, 8), (8, 3)]
    spec = spec_of(32, 16).resized_as(network)
    networks.save(tmp_path, spec, network)
    _, loaded = networks.load(tmp_path)
    assert torch.equal(loaded(ROWS), network(ROWS))
    assert Onnx().export(loaded, ROWS[:16], tmp_path / "model.onnx") < 1e-4
