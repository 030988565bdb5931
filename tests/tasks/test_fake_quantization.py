import copy

import numpy as np
import pytest
import torch

from tasks.compute import Compute
from tasks.distillation import DistillationParams, NetworkAnswers, distill_into
from tasks.exporters.onnx import run
from tasks.fake_quantization import RoundedActivation, RoundedWeight, fake_quantized
from tasks.fit import Watch
from tasks.networks import Spec
from tasks.networks.convnet import ConvNet
from tasks.onnx_layers import plain_session
from tasks.quantizers.static_int8 import StaticInt8
from tasks.sections import parse

SPEC = Spec(network=ConvNet(widths=(8, 8)), shape=(8, 8, 1), outputs=2)
PLAIN = {
    "fit": {"steps": 6, "learning_rate": 0.01},
    "batch_size": 16,
    "views": 1,
    "augmentation": {"name": "none"},
    "losses": [{"name": "soft_labels", "temperature": 2.0}],
}


class Stop(Exception):  # noqa: N818 - not an error
    pass


def inputs_of(count=32, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("limit", [64, 127])
def test_a_weight_becomes_integers_times_a_scale_per_channel(limit):
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[4] = 0
    found = RoundedWeight(limit)(weight).numpy().reshape(5, -1)
    plain = weight.numpy().reshape(5, -1)
    scale = np.maximum(np.abs(plain).max(1, keepdims=True), 1e-9) / limit
    assert found == pytest.approx(np.round(plain / scale) * scale, abs=1e-6)
    assert np.abs(found / scale).max() == pytest.approx(limit)


def test_gradients_of_a_weight_pass_as_if_nothing_happened():
    weight = torch.randn(4, 6, requires_grad=True)
    factor = torch.randn(4, 6)
    (RoundedWeight(64)(weight) * factor).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, factor)


def test_a_range_follows_what_it_sees_in_training_alone():
    rounded = RoundedActivation()
    rounded(torch.tensor([-1.0, 3.0]))
    assert (rounded.low, rounded.high) == (-1, 3)
    rounded.rate = 0.5
    rounded(torch.tensor([2.0, 5.0]))
    assert (rounded.low, rounded.high) == (-0.5, 4)
    rounded.eval()
    rounded(torch.tensor([-100.0, 100.0]))
    assert (rounded.low, rounded.high) == (-0.5, 4)


def test_values_become_one_of_256_and_those_outside_the_nearest():
    rounded = RoundedActivation()
    rounded(torch.tensor([-1.0, 3.0]))
    values = torch.linspace(-2, 4, 500, requires_grad=True)
    found = rounded.eval()(values)
    scale = 4 / 255
    zero = round(1 / scale)
    plain = values.detach().numpy()
    expected = (np.clip(np.round(plain / scale) + zero, 0, 255) - zero) * scale
    assert found.detach().numpy() == pytest.approx(expected, abs=1e-5)
    found.sum().backward()
    inside = (plain > -1.01) & (plain < 3.01)
    assert values.grad is not None
    assert np.array_equal(values.grad.numpy()[inside], np.ones(inside.sum()))
    assert not values.grad.numpy()[(plain < -1.02) | (plain > 3.02)].any()


def test_inside_it_computes_what_the_int8_file_will(exported_convnet, tmp_path):
    """Weights fold with the normalisation that follows; logits are rounded in the file alone."""
    network, source = copy.deepcopy(exported_convnet[0]), exported_convnet[1]
    inputs = inputs_of(64)
    StaticInt8().quantize(source, tmp_path / "model.onnx", inputs.numpy())
    session = plain_session(str(tmp_path / "model.onnx"))
    quantized = np.asarray(session.run(None, {"inputs": inputs.numpy()})[0])
    plain = run(source, inputs.numpy())
    with fake_quantized(network, 64, inputs), torch.no_grad():
        imitated = network(inputs).numpy()
    assert np.abs(imitated - plain).max() > 0
    step = np.ptp(quantized) / 255
    assert np.abs(imitated - quantized).mean() < step
    assert np.abs(imitated - quantized).mean() < 0.6 * np.abs(plain - quantized).mean() + step / 4


def test_afterwards_the_network_is_the_plain_one(build):
    network = build(SPEC)
    before = copy.deepcopy(network.state_dict())
    inputs = inputs_of()
    with torch.no_grad():
        expected = network(inputs)

    def fails():
        with fake_quantized(network, 64, inputs):
            assert any("activation" in name for name in network.state_dict())
            raise Stop

    with pytest.raises(Stop):
        fails()
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert {type(one).__name__ for one in network.body} == {
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
        "AvgPool2d",
        "Flatten",
    }
    with torch.no_grad():
        assert torch.equal(network(inputs), expected)


def test_a_copy_has_ranges_of_its_own(build):
    network = build(SPEC)
    with fake_quantized(network, 64, inputs_of()):
        other = copy.deepcopy(network).train()
        before = {name: one.clone() for name, one in network.state_dict().items()}
        other(inputs_of() * 9)
        after = network.state_dict()
        assert all(torch.equal(one, after[name]) for name, one in before.items())
        moved = other.state_dict()["body.0.activation.high"]
        assert moved > before["body.0.activation.high"]


def gap(network, expected, inputs):
    with torch.no_grad():
        return float((network(inputs) - expected).square().mean())


def test_training_inside_brings_the_rounded_network_back_to_what_it_was(build, rows, compute):
    teacher = build(SPEC, seed=4).train()
    inputs = rows.modality.to_network(torch.from_numpy(rows.train.inputs.copy()))
    with torch.no_grad():
        for _ in range(50):  # as if it had been trained on these rows
            teacher(inputs)
        teacher.head.weight.mul_(8)
        expected = teacher.eval()(inputs)
    network = copy.deepcopy(teacher)
    losses = [{"name": "logits", "centred": False}]
    plain = PLAIN | {"losses": losses, "fit": {"steps": 100, "learning_rate": 0.005}}
    with fake_quantized(network, 2, inputs):  # coarse enough to hurt: five values a weight
        before = gap(network, expected, inputs)
        params = parse(DistillationParams, plain, "finetune")
        distill_into(network, [NetworkAnswers(teacher)], rows, params, compute, Watch())
        after = gap(network, expected, inputs)
    assert after < 0.5 * before


def test_half_precision_is_no_obstacle(build, rows):
    half = Compute(seed=0, threads=1, device=torch.device("cpu"), bf16=True)
    state = tuned(build, rows, half, Watch())
    assert all(np.isfinite(np.frombuffer(state["head.weight"], np.float32)))


def tuned(build, rows, compute, watch, ema_decay=None):
    """The weights, as bytes, of a network trained on inside; the same start each time."""
    teacher, network = build(SPEC, seed=4), build(SPEC, seed=5)
    fit = PLAIN["fit"] | {"ema_decay": ema_decay}
    params = parse(DistillationParams, PLAIN | {"fit": fit}, "finetune")
    with fake_quantized(network, 64, inputs_of()):
        distill_into(network, [NetworkAnswers(teacher)], rows, params, compute, watch)
    return {name: one.numpy().tobytes() for name, one in network.state_dict().items()}


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(build, rows, compute, tmp_path, ema_decay):
    whole = tuned(build, rows, compute, Watch(), ema_decay)

    def stop(at, steps, metrics):
        if at == 4 and metrics:
            raise Stop

    checkpoint = tmp_path / "run.pt"
    with pytest.raises(Stop):
        tuned(build, rows, compute, Watch(stop, checkpoint, every_seconds=0), ema_decay)
    state = torch.load(checkpoint, weights_only=True)
    assert "body.0.activation.high" in state["network"]
    assert tuned(build, rows, compute, Watch(checkpoint=checkpoint), ema_decay) == whole
    assert build(SPEC, seed=5).state_dict()["head.weight"].numpy().tobytes() != whole["head.weight"]
