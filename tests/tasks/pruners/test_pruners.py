import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks import networks
from tasks.errors import CompressionError, ParamsError
from tasks.networks import Classifier, Spec, count_macs
from tasks.networks.convnet import ConvNet
from tasks.pruners import PRUNERS, ChannelPruner, Cut, Evidence, Judgement, sensitivity
from tasks.pruners.magnitude import Magnitude

METHODS = ("magnitude", "bn_scale", "taylor", "activation")
WITHOUT_NORMALISATION = ("ngrams", "text_transformer")
WIDE = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.Embedding)

PROGRAM = """
import sys
from pathlib import Path
import torch
from tasks.networks import load

torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    _, network = load(folder)
    with torch.no_grad():
        said = network(torch.load(folder / "rows.pt"))
    assert torch.equal(said, torch.load(folder / "said.pt")), folder
"""


def method(name, **fields):
    return PRUNERS.parse({"name": name, **fields})


def applicable(name, spec):
    return name != "bn_scale" or spec.network.plain()["name"] not in WITHOUT_NORMALISATION


def made(layer):
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def widths(network):
    return {
        path: made(layer)
        for path, layer in network.named_modules()
        if isinstance(layer, WIDE) and path != "head"
    }


# Every method on every network


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("changes", [{"keep_macs": 0.7}, {"round_to": 4, "keep_ratio": 0.6}])
def test_kept_widths_are_multiples_and_the_network_stays_whole(
    name, changes, spec, network, evidence
):
    if not applicable(name, spec):
        return
    pruner, before, macs = method(name, **changes), widths(network), dense(network, evidence)
    pruner.prune(network, evidence.inputs, evidence.targets)
    after = widths(network)
    narrower = [path for path in before if after[path] < before[path]]
    assert narrower
    assert all(after[path] % pruner.round_to == 0 for path in narrower)
    assert dense(network, evidence) <= macs * changes.get("keep_macs", 1)
    assert network.head.out_features == spec.outputs
    rebuilt = spec.resized_as(network).build()
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.eval()(evidence.inputs), network(evidence.inputs))
    network.train()(evidence.inputs).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def dense(network, evidence):
    return count_macs(network, evidence.example)


def test_every_method_is_bit_equal_in_a_fresh_process(
    specs, trained, evidence_of, python, tmp_path
):
    for name in PRUNERS.methods:
        for kind in ("resnet", "text_transformer"):
            spec, evidence = specs[kind], evidence_of(specs[kind])
            if not applicable(name, spec):
                continue
            network = trained(spec)
            method(name).prune(network, evidence.inputs, evidence.targets)
            folder = tmp_path / f"{name}-{kind}"
            folder.mkdir()
            networks.save(folder, spec.resized_as(network), network)
            with torch.no_grad():
                torch.save(network(evidence.inputs), folder / "said.pt")
            torch.save(evidence.inputs, folder / "rows.pt")
    done = python("-c", PROGRAM, *sorted(tmp_path.iterdir()))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["magnitude", "taylor"])
def test_the_plan_leaves_the_network_as_it_is(name, specs, trained, evidence_of, state_digest):
    network, evidence = trained(specs["resnet"]), evidence_of(specs["resnet"])
    before = state_digest(network)
    pruner = method(name, allocation="sensitivity", keep_macs=0.5)
    sensitivity(pruner, network, pruner.plan(network, evidence), evidence)
    assert state_digest(network) == before


@pytest.mark.parametrize("name", ["taylor", "activation"])
def test_methods_that_look_at_rows_choose_by_them(name, specs, trained, evidence_of, state_digest):
    ends = []
    for seed in (0, 0, 1):
        network = trained(specs["convnet"])
        evidence = evidence_of(specs["convnet"], seed=seed)
        # Half the picture alone, so that the rows differ in kind and not by chance.
        evidence.inputs[..., slice(0, 4) if seed else slice(4, 8)] = 0
        method(name).prune(network, evidence.inputs, evidence.targets)
        ends.append(state_digest(network))
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


# How much goes


def macs_left(pruner, spec, network, evidence):
    whole, pruned = dense(network, evidence), copy.deepcopy(network)
    pruner.prune(pruned, evidence.inputs, evidence.targets)
    return dense(pruned, evidence) / whole


def macs_of(first, second):
    """Of a convnet on 6×6 pictures with 3 classes: two convolutions, 4 averages per channel."""
    return 36 * 9 * first + 9 * 9 * first * second + 4 * second * 3


@settings(max_examples=8)
@given(st.floats(0.05, 0.95))
def test_the_largest_network_within_keep_macs_is_taken(keep_macs):
    spec = Spec(network=ConvNet(widths=(16, 24)), shape=(6, 6, 1), outputs=3)
    network, rows = spec.build().eval(), torch.rand(2, 1, 6, 6)
    assert count_macs(network, rows) == macs_of(16, 24)
    most = keep_macs * macs_of(16, 24)
    cuts = Magnitude(keep_macs=keep_macs, round_to=1).plan(network, Evidence.of(network, rows))
    widths = [cut.kept for cut in cuts]
    ratios = [at / 2000 for at in range(1, 2000)]
    all_widths = [[max(1, round(width * ratio)) for width in (16, 24)] for ratio in ratios]
    assert widths == [found for found in all_widths if macs_of(*found) <= most][-1]


def test_layers_that_hurt_less_lose_more(specs, trained, evidence_of):
    spec = specs["mlp"]
    network, evidence = trained(spec), evidence_of(spec)
    with torch.no_grad():  # three quarters of the first layer say nothing
        network.body[0].weight[16:] = 0
        network.body[1].weight[16:] = 0
        network.body[1].bias[16:] = 0
    uniform, ours = (
        Magnitude(keep_ratio=0.5, allocation=how) for how in ("uniform", "sensitivity")
    )
    first, second = (cut.kept for cut in ours.plan(network, evidence))
    assert 16 <= first < 32
    assert second > 16
    assert macs_left(ours, spec, network, evidence) <= macs_left(uniform, spec, network, evidence)
    losses = []
    for pruner in (uniform, ours):
        pruned = copy.deepcopy(network)
        pruner.prune(pruned, evidence.inputs, evidence.targets)
        losses.append(Judgement.of(pruned, Evidence.of(network, evidence.inputs)).loss)
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", PRUNERS.methods)
@pytest.mark.parametrize("steps", [2, 3])
def test_in_several_steps_the_same_goal_is_reached(name, steps, specs, trained, evidence_of):
    spec = specs["resnet"]
    evidence, fields = evidence_of(spec), {"remove": 3} if name == "depth" else {}
    at_once, stepwise = trained(spec), trained(spec)
    pruner = method(name, **fields)
    plan = pruner.plan(at_once, evidence)
    pruner.carry_out(at_once, plan, evidence)
    left = []
    for at in range(steps):
        part = pruner.part_way(plan, (at + 1) / steps)
        assert all(cut.kept % cut.step == 0 or cut.kept == cut.width for cut in part)
        pruner.carry_out(stepwise, part, evidence)
        left.append(sum(cut.kept for cut in part))
    assert left == sorted(left, reverse=True)
    assert left[0] > left[-1]
    assert widths(stepwise) == widths(at_once)
    assert sum(map(zeros, stepwise.parameters())) == sum(map(zeros, at_once.parameters()))
    assert len(spec.resized_as(stepwise).skipped) == len(spec.resized_as(at_once).skipped)


def zeros(parameter):
    return int((parameter == 0).sum())


def test_steps_are_a_geometric_progression():
    (half, whole) = (Magnitude().part_way((Cut(("a",), 64, 16, 8),), at)[0] for at in (0.5, 1))
    assert (half.kept, whole.kept) == (32, 16)


# What each layer costs


@pytest.mark.parametrize("name", PRUNERS.methods)
def test_there_is_a_row_for_each_prunable_layer(name, specs, trained, evidence_of):
    spec = specs["resnet"]
    network, evidence = trained(spec), evidence_of(spec)
    pruner = method(name)
    found = sensitivity(pruner, network, pruner.plan(network, evidence), evidence)
    rows = {row["layer"]: row for row in found}
    if isinstance(pruner, ChannelPruner):
        assert set(rows) == set(widths(network))
        assert rows["body.0.0"]["together_with"] == ["body.1.residual.3", "body.2.residual.3"]
        assert (rows["body.0.0"]["width"], rows["body.0.0"]["kept"]) == (16, 8)
    elif name == "depth":
        assert list(rows) == ["body.1", "body.2", "body.4"]
    else:
        assert set(rows) == {*widths(network), "head"}
    with torch.no_grad():
        said = network(evidence.inputs).log_softmax(1)
    before = float(-(evidence.targets * said).sum(1).mean())
    agreement = float((said.argmax(1) == evidence.targets.argmax(1)).float().mean())
    for row in rows.values():
        assert row["loss_before"] == pytest.approx(before)
        assert row["agreement_before"] == pytest.approx(agreement)
        assert 0 <= row["agreement_after"] <= 1
        assert math.isfinite(row["loss_after"])
    assert any(row["loss_after"] != row["loss_before"] for row in rows.values())


def test_a_row_says_what_happens_when_that_layer_alone_is_pruned(specs, trained, evidence_of):
    spec = specs["mlp"]
    network, evidence = trained(spec), evidence_of(spec)
    rows = sensitivity(Magnitude(), network, Magnitude().plan(network, evidence), evidence)
    with torch.no_grad():  # by hand: what reads the weakest half gets nothing of it
        first, reader = network.body[0].weight, network.body[3].weight
        norm = network.body[1].weight
        size = first.square().sum(1) + norm.square() + reader.square().sum(0)
        reader[:, size.argsort()[:32]] = 0
        said = network(evidence.inputs).log_softmax(1)
        loss = float(-(evidence.targets * said).sum(1).mean())
    assert rows[0]["layer"] == "body.0"
    assert rows[0]["loss_after"] == pytest.approx(loss, rel=1e-4)


# Refused


@pytest.mark.parametrize("name", ["magnitude", "bn_scale", "taylor", "activation"])
def test_two_targets_are_refused_and_none_means_half(name):
    with pytest.raises(ParamsError, match="keep_ratio and keep_macs exclude each other"):
        method(name, keep_ratio=0.5, keep_macs=0.5)
    assert (method(name).keep_ratio, method(name, keep_macs=0.3).keep_ratio) == (0.5, None)
    assert method(name, keep_ratio=None, keep_macs=None).keep_ratio == 0.5
    for made_here in (method(name), method(name, keep_macs=0.3)):
        assert PRUNERS.parse(made_here.plain()) == made_here


def test_macs_out_of_reach_are_refused_with_the_layers(specs, trained, evidence_of):
    network, evidence = trained(specs["text_transformer"]), evidence_of(specs["text_transformer"])
    with pytest.raises(CompressionError, match=r"keep_macs 0\.2 cannot be reached: 0\.5\d+ of"):
        Magnitude(keep_macs=0.2).plan(network, evidence)
    with pytest.raises(CompressionError, match=r"'body\.layers\.0\.feed_forward\.0' 64"):
        Magnitude(keep_macs=0.2).plan(network, evidence)


def test_a_network_without_channels_that_may_go_is_refused():
    network = Classifier(nn.Flatten(), 4, 2).eval()
    with pytest.raises(CompressionError, match="magnitude needs a layer whose width may change"):
        Magnitude().prune(network, torch.rand(2, 4))
